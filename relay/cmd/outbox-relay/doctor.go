package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay/doctor"
)

func newDoctorCommand(p *process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check all that exactly-once delivery depends on",
		Long: `Check the configuration, Postgres, NATS and the stream for all that exactly-once delivery depends on,
and say of each whether it is well and, if not, what to do. It changes nothing, works whether or not a
relay runs, and shows no secrets. What cannot be checked, as something before it failed, is left out.
To try whether the relay may read back the stream, it has the broker make a consumer for a moment.

The exit code is 1 if something failed or, with strict = true, if there is a warning.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			check := func() error {
				_, err := p.config(config.NeedRelay)
				if usage, ok := errors.AsType[*usageError](err); ok {
					return usage.err // The hint is for who asked for something else.
				}
				return err
			}
			c, err := p.config(config.NeedValues)
			if err != nil {
				report := doctor.Unreadable(check())
				return p.writeReport(&report, asJSON)
			}
			report := doctor.Run(cmd.Context(), relayConfig(c, "nats://"+c.NATS.Listen), doctor.Options{Check: check, Embedded: c.NATS.Embedded()})
			return p.writeReport(&report, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// writeReport writes the findings. Its error says that they do not suffice.
func (p *process) writeReport(report *doctor.Report, asJSON bool) error {
	verdict := report.Err()
	if asJSON {
		if err := writeJSON(p.stdout, struct {
			Healthy bool             `json:"healthy"`
			Checks  []doctor.Finding `json:"checks"`
		}{verdict == nil, report.Findings}); err != nil {
			return err
		}
	} else {
		for _, f := range report.Findings {
			// A detail of several lines stays in its column.
			detail := strings.ReplaceAll(f.Detail, "\n", "\n"+strings.Repeat(" ", len("warning  ")+len("duplicate window  ")))
			if err := printf(p.stdout, "%-7s  %-16s  %s\n", f.Severity, f.Check, detail); err != nil {
				return err
			}
		}
	}
	if verdict != nil {
		return fmt.Errorf("doctor: %w", verdict)
	}
	return nil
}
