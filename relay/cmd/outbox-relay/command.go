package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/store"
)

// Exit codes, as doc.go and the help have them.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a command line or a configuration that cannot work.
type usageError struct {
	err  error
	hint string // Where to read more.
}

func (e *usageError) Error() string { return e.err.Error() + e.hint }
func (e *usageError) Unwrap() error { return e.err }

// wrongCommand makes err a usageError of a command line.
func wrongCommand(cmd *cobra.Command, err error) error {
	return &usageError{err: err, hint: fmt.Sprintf(" (see %s --help)", cmd.CommandPath())}
}

// wrongConfig makes err, a list of faults on several lines, a usageError of the configuration.
func wrongConfig(err error) error {
	return &usageError{err: err, hint: "\nevery setting is explained by outbox-relay help config"}
}

func exitCode(err error) int {
	switch usage := (*usageError)(nil); {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.Is(err, store.ErrParameter): // The DSN asks for what this server does not have.
		return exitUsage
	default:
		return exitFailure
	}
}

const about = `Go Outbox relays events from a Postgres table to a NATS JetStream stream: each committed
event once, in the order in which its aggregate produced it. The relay, Postgres and NATS may
crash or be away. Any number of relays may run: one leads, the others stand by.

Two minutes to the first event, with a NATS server inside the relay:

  docker run -d --name pg -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres
  export OUTBOX_DATABASE_DSN='postgres://postgres:secret@localhost:5432/postgres'
  export OUTBOX_NATS_URL=embedded      # or nats://localhost:4222
  outbox-relay

It creates its tables and the stream. Then, from a second terminal, a transaction:

  docker exec pg psql -U postgres -c "select outbox_emit(
      'users', 'User', '17', 'UserCreated', '{\"name\": \"Ada\"}')"
  nats stream view OUTBOX              # subject outbox.users.User.17`

const exitCodes = `Exit codes: 0 stopped as asked, or done; 1 failure; 2 wrong configuration or command line.`

func newRootCommand(p *process) *cobra.Command {
	relay := newRunCommand(p)
	root := &cobra.Command{
		Use:               "outbox-relay",
		Short:             "Relay events from a Postgres outbox to NATS JetStream",
		Long:              about,
		Version:           currentVersion(),
		RunE:              relay.RunE,
		Args:              subcommand,
		SilenceErrors:     true, // They are printed in one place, run.
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},

		SuggestionsMinimumDistance: 2,
	}
	root.AddCommand(relay, newMigrateCommand(p), newDeadCommand(p), newReplayCommand(p), newPauseCommand(p), newResumeCommand(p), newStatusCommand(p), newFindCommand(p), newDoctorCommand(p),
		newAuditCommand(p), newTailCommand(p),
		newHealthcheckCommand(p), newVersionCommand(p), newConfigTopic())
	root.SetHelpCommand(newHelpCommand(root))
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetVersionTemplate(versionLine() + "\n")
	root.SetFlagErrorFunc(wrongCommand)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		help(cmd, args)
		if cmd == root {
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s\n%s\n", settings, exitCodes)
		}
	})
	return root
}

// settings says where a relay's settings come from. The list of them is several screens long: a topic of its own.
const settings = `Settings are read from the file that ` + config.PathEnv + ` names (default ` + config.DefaultPath + `), then from OUTBOX_…
variables of the environment, which win. outbox-relay help config explains every one of them.
Traces are sent to where OTEL_EXPORTER_OTLP_ENDPOINT says, if it is set.`

// newConfigTopic returns the help on the settings. It cannot be run.
func newConfigTopic() *cobra.Command {
	return &cobra.Command{Use: "config", Short: "Every setting: file key, variable, default and meaning", Long: config.Usage()}
}

func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [command|config]",
		Short: "Explain a command, or every setting",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return wrongCommand(root, err)
			}
			if len(rest) > 0 {
				return subcommand(cmd, rest)
			}
			return cmd.Help()
		},
	}
}

// subcommand refuses the arguments of a command that has subcommands: none of them was meant by it.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = ", did you mean " + strings.Join(near, " or ") + "?"
	}
	return wrongCommand(cmd, fmt.Errorf("unknown command %q%s", args[0], hint))
}

// usage marks what an argument check finds as a wrong command line.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return wrongCommand(cmd, err)
		}
		return nil
	}
}

// noArgs and oneArg are cobra's NoArgs and ExactArgs(1), with our own messages.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

func oneArg(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("got %d arguments, want one", len(args))
	}
	return nil
}
