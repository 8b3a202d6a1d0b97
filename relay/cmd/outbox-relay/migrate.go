package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/store"
)

func newMigrateCommand(p *process) *cobra.Command {
	var script bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Create or upgrade the outbox's tables",
		Long: `Create the outbox's tables or bring them to this version. Nothing is done if they are of this
version already, and any number of processes may migrate at once. A table of that name and
another shape is refused and never altered.

The relay does the same at each start unless OUTBOX_MIGRATE=false; the command is for roles
that may not. With --print it prints the schema as SQL, for other migration tools, and needs
no database.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if script {
				return printSchema(p)
			}
			return migrate(cmd.Context(), p)
		},
	}
	cmd.Flags().BoolVar(&script, "print", false, "print the SQL instead of running it")
	return cmd
}

func migrate(ctx context.Context, p *process) error {
	outbox, err := p.outbox()
	if err != nil {
		return err
	}
	before := outbox.Check(ctx)
	if err := outbox.Migrate(ctx); err != nil {
		return err
	}
	return printf(p.stdout, "the tables of %s %s\n", outbox.Table(), migrated(before))
}

// migrated says what a migration did to tables that a check found to be so before.
func migrated(before error) string {
	switch {
	case errors.Is(before, store.ErrNoTable):
		return "have been created"
	case errors.Is(before, store.ErrOldSchema):
		return "have been upgraded"
	default:
		return "were up to date already"
	}
}

func printSchema(p *process) error {
	c, err := p.config(needNothing)
	if err != nil {
		return err
	}
	script, err := store.Table(c.Table).Script()
	if err != nil {
		return err
	}
	return printf(p.stdout, "%s", script)
}

// outbox opens the configured outbox, for a command that needs nothing else.
func (p *process) outbox() (*store.Outbox, error) {
	c, err := p.config(needDatabase)
	if err != nil {
		return nil, err
	}
	return openOutbox(c)
}

// openOutbox opens the outbox of a configuration, for a command that needs no more of it.
func openOutbox(c config.Config) (*store.Outbox, error) {
	outbox, err := store.Open(string(c.DatabaseDSN), store.Options{Table: store.Table(c.Table)})
	if err != nil {
		return nil, wrongConfig(err)
	}
	return outbox, nil
}
