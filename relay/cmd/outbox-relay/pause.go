package main

import (
	"fmt"
	"os"
	"os/user"

	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/store"
)

func newPauseCommand(p *process) *cobra.Command {
	var reason, by string
	cmd := &cobra.Command{
		Use:   "pause --reason TEXT",
		Short: "Have all relays publish nothing until resume",
		Long: `Pause the outbox: from within a second on no relay publishes, whichever leads, until outbox-relay resume.
Events wait, and their order holds; what is on its way to the stream is still stored.

The pause is kept in the database, so it outlives failovers and restarts. Status, doctor, /readyz, the
metrics and each relay's log tell it, with the reason. A relay that is paused stays ready. If the outbox
is paused already, the reason takes the place of the former one.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reason == "" {
				return wrongCommand(cmd, store.ErrNoReason)
			}
			outbox, err := p.outbox()
			if err != nil {
				return err
			}
			if err := outbox.Pause(cmd.Context(), reason, by); err != nil {
				return err
			}
			return printf(p.stdout, "paused; events wait until `outbox-relay resume`\n")
		},
	}
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever asks: `TEXT`")
	cmd.Flags().StringVar(&by, "by", operator(), "who you are, for whoever asks: `NAME`")
	return cmd
}

func newResumeCommand(p *process) *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "End a pause",
		Long: `End the pause that outbox-relay pause began. The leader publishes what has waited, in order. If the
outbox is not paused, resume says so; the exit code is 0 all the same.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			outbox, err := p.outbox()
			if err != nil {
				return err
			}
			ended, err := outbox.Resume(cmd.Context())
			switch {
			case err != nil:
				return err
			case ended == nil:
				return printf(p.stdout, "it was not paused\n")
			}
			return printf(p.stdout, "resumed, after %s: %s\n", age(ended.For.Seconds()), visible(ended.Reason))
		},
	}
}

// operator names who runs this process.
func operator() string {
	name := "somebody"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name = fmt.Sprintf("%s@%s", name, host)
	}
	return name
}

// pauseStatus is a pause in status --json.
type pauseStatus struct {
	Reason       string  `json:"reason"`
	By           string  `json:"by"`
	SinceSeconds float64 `json:"since_seconds"`
}

func pauseOf(p *store.Pause) *pauseStatus {
	if p == nil {
		return nil
	}
	return &pauseStatus{p.Reason, p.By, p.For.Seconds()}
}

// String is for a person.
func (p *pauseStatus) String() string {
	return fmt.Sprintf("for %s, by %s: %s; `outbox-relay resume` ends it", age(p.SinceSeconds), visible(p.By), visible(p.Reason))
}
