package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay/admin"
)

// healthTimeout is less than the 3 s that the Dockerfile gives the command.
const healthTimeout = 2 * time.Second

func newHealthcheckCommand(p *process) *cobra.Command {
	var ready bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the running relay how it is",
		Long: `Ask the relay that runs with this configuration, on this host, how it is. It exits with 0 if the
relay is alive and with 1 if not, as Docker's HEALTHCHECK wants it.

With host networking several relays share their ports. The answer of a relay of another table, or in
another container, does not count.

Alive is not the same as useful: a relay that stands by, or whose broker is away, is alive, since a
restart would mend nothing. A relay that hangs is not alive. With --ready the relay must publish, or
another must lead and this one be able to: it has reached Postgres, NATS and the stream.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.config(config.NeedNothing)
			if err != nil {
				return errors.New(err.Error()) // No longer a usageError: Docker reserves its exit code.
			}
			report, err := ask(cmd.Context(), admin.Self(c.Table.String()), c.HTTPAddr, ready)
			if err != nil {
				return fmt.Errorf("unhealthy: %w", err)
			}
			return printf(p.stdout, "healthy: %s\n", describe(report))
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "want it to publish or stand by, not only to be alive")
	return cmd
}

// ask asks the relay that serves HTTP at addr. It must have the identity self.
func ask(ctx context.Context, self admin.Identity, addr string, ready bool) (admin.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	host, err := reachable(addr)
	if err != nil {
		return admin.Report{}, err
	}
	path := "/healthz"
	if ready {
		path = "/readyz"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return admin.Report{}, fmt.Errorf("ask %s: %w", host, err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // Not through a proxy.
	answer, err := client.Do(request)
	if err != nil {
		return admin.Report{}, err
	}
	defer answer.Body.Close()
	var report admin.Report
	if err := json.NewDecoder(answer.Body).Decode(&report); err != nil || report.State == "" {
		return admin.Report{}, fmt.Errorf("the server on %s is no relay", host)
	}
	if err := self.Check(report.Identity); err != nil {
		return admin.Report{}, fmt.Errorf("another relay answers on %s: %w; give each relay an OUTBOX_HTTP_ADDR of its own", host, err)
	}
	if answer.StatusCode != http.StatusOK {
		return admin.Report{}, errors.New(describe(report))
	}
	return report, nil
}

// reachable returns the address at which to ask a relay that listens on addr, on this host.
func reachable(addr string) (string, error) {
	if addr == config.HTTPOff {
		return "", errors.New("http_addr is off, so there is nothing to ask: set OUTBOX_HTTP_ADDR")
	}
	host, port, err := net.SplitHostPort(addr)
	switch {
	case err != nil:
		return "", fmt.Errorf("http_addr: %w", err)
	case port == "0":
		return "", fmt.Errorf("http_addr is %s: only the relay knows which free port it got; set OUTBOX_HTTP_ADDR to one with a number", addr)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost" // It listens on all addresses.
	}
	return net.JoinHostPort(host, port), nil
}

func describe(r admin.Report) string {
	text := string(r.State)
	switch {
	case r.Standby:
		text = "standing by, another relay leads"
	case r.Term != 0:
		text = fmt.Sprintf("%s, term %d", r.State, r.Term)
	}
	if r.Trouble != "" {
		text += ": " + r.Trouble
	}
	return text
}
