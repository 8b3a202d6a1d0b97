package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/store"
)

func newMigrateCommand(p *process) *cobra.Command {
	var script, grants bool
	roles := store.Roles{Producer: "outbox_producer", Relay: "outbox_relay", Migrator: "outbox_migrator"}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Create or upgrade the outbox's tables",
		Long: `Create the outbox's tables or bring them to this version. Nothing is done if they are of this
version already, and any number of processes may migrate at once. A table of that name and
another shape is refused and never altered.

Tables are upgraded while producers and a relay of the version before use them: the upgrade
asks for each lock briefly, again and again, so that no producer waits for long. If another
session keeps a table for a minute, the upgrade names it and stops; the next run goes on from
there. Only the tables' owner may upgrade them.

The relay does the same at each start, unless OUTBOX_MIGRATE=false. Use this command if the
relay's role may not. With --print it prints the schema as SQL, for other migration tools;
with --print-grants it prints the GRANTs that producers, the relay and the migrator need.
Neither needs a database.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case script && grants:
				return wrongCommand(cmd, errors.New("--print and --print-grants exclude each other"))
			case script:
				return printSchema(p)
			case grants:
				return printGrants(p, roles)
			}
			return migrate(cmd.Context(), p)
		},
	}
	cmd.Flags().BoolVar(&script, "print", false, "print the SQL instead of running it")
	cmd.Flags().BoolVar(&grants, "print-grants", false, "print the GRANTs for these roles:")
	cmd.Flags().StringVar(&roles.Producer, "producer", roles.Producer, "role that inserts events")
	cmd.Flags().StringVar(&roles.Relay, "relay", roles.Relay, "role that the relay connects as")
	cmd.Flags().StringVar(&roles.Migrator, "migrator", roles.Migrator, "role that owns the tables")
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
	c, err := p.config(config.NeedNothing)
	if err != nil {
		return err
	}
	script, err := c.Table.Script()
	if err != nil {
		return err
	}
	return printf(p.stdout, "%s", script)
}

func printGrants(p *process, roles store.Roles) error {
	c, err := p.config(config.NeedNothing)
	if err != nil {
		return err
	}
	return printf(p.stdout, "%s", c.Table.GrantScript(roles))
}

// outbox opens the configured outbox, for a command that needs nothing else.
func (p *process) outbox() (*store.Outbox, error) {
	c, err := p.config(config.NeedDatabase)
	if err != nil {
		return nil, err
	}
	return openOutbox(c)
}

// openOutbox opens the outbox of a configuration, for a command that needs no more of it.
func openOutbox(c config.Config) (*store.Outbox, error) {
	dsn := string(c.DatabaseDSN)
	if c.DatabaseDSNFile != "" {
		dsn = "" // It is read from there.
	}
	outbox, err := store.Open(dsn, store.Options{Table: c.Table, HoldDead: c.Relay.OnDead == config.OnDeadHold, DSNFile: c.DatabaseDSNFile, PasswordFile: c.DatabasePasswordFile})
	if err != nil {
		return nil, wrongConfig(err)
	}
	return outbox, nil
}
