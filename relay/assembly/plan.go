package assembly

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// plan is a configuration in the words of the packages that a relay is made of.
type plan struct {
	dsn       string
	store     store.Options
	publisher stream.PublisherOptions
	lock      *election.AdvisoryLockOptions // Nil for another election, or none.
	keyValue  *election.KeyValueOptions     // Likewise; its key is empty if the database's name is to be part of it.
	relay     relay.Options
}

// errEmbedded is one program's fault and not another's.
var errEmbedded = errors.New(`nats_url: got "embedded", but this program runs no NATS server of its own: set OUTBOX_NATS_URL to that of one`)

// planOf translates a configuration. Its error has the faults that nobody can find in the plan any more: it goes on with
// what could have been meant, so that the others are found too.
func planOf(c config.Config, o Options) (plan, error) {
	var faults []error
	template, err := stream.ParseTemplate(c.Stream.Subject)
	if err != nil {
		faults = append(faults, fmt.Errorf("subject: %w", err))
	}
	if c.NATS.Embedded() && o.NATSURL == "" {
		faults = append(faults, errEmbedded)
		o.NATSURL = embeddedURL
	}
	if c.Strict && c.Relay.Retain == 0 {
		faults = append(faults, fmt.Errorf("relay.retain: got \"0s\", with strict = true: %s", noArchive))
	}
	table := store.Table(c.Table)
	dsn := string(c.DatabaseDSN)
	if c.DatabaseDSNFile != "" {
		dsn = "" // It is read from there, each time.
	}
	p := plan{
		dsn: dsn,
		store: store.Options{
			Table:    table,
			HoldDead: c.Relay.OnDead == config.OnDeadHold,
			Retain:   c.Relay.Retain,
			Logger:   o.Logger,

			AdoptStream: c.Stream.Adopt,

			DSNFile:       c.DatabaseDSNFile,
			PasswordFile:  c.DatabasePasswordFile,
			BeforeConnect: o.BeforeConnect,
		},
		publisher: stream.PublisherOptions{
			Connect: connectOptions(c.NATS, o),
			Setup: stream.Setup{
				Stream:          c.Stream.Name,
				Template:        template,
				Create:          c.Stream.Create,
				DuplicateWindow: c.Stream.DuplicateWindow,
				MaxAge:          c.Stream.MaxAge,
				Replicas:        c.Stream.Replicas,
				Memory:          c.Stream.Storage == config.StorageMemory,
				MaxBytes:        c.Stream.MaxBytes,
				Compress:        c.Stream.Compression == config.CompressionS2,
				PlacementTags:   c.Stream.Tags(),
				Strict:          c.Strict,
				MinWindow:       relay.MinDuplicateWindow(c.Relay.AckTimeout),
			},
			Encoder:    stream.Encoder{CloudEventsSource: c.Stream.CloudEventsSource},
			AckTimeout: c.Relay.AckTimeout,
		},
		relay: relay.Options{
			BatchSize:       c.Relay.BatchSize,
			BatchBytes:      c.Relay.BatchBytes,
			PollInterval:    c.Relay.PollInterval,
			MaxAttempts:     c.Relay.MaxAttempts,
			RetryBackoff:    c.Relay.RetryBackoff,
			RetryBackoffMax: c.Relay.RetryBackoffMax,
			ShutdownTimeout: c.Relay.ShutdownTimeout,
			Name:            o.Name,
			Logger:          o.Logger,
			Hooks:           o.Hooks,
		},
	}
	switch c.Election.Kind {
	case config.ElectionPostgres:
		p.lock = &election.AdvisoryLockOptions{
			Key:           c.AdvisoryLock,
			Table:         table.LockKey(),
			ResignChannel: table.ResignChannel(),
			Fatal:         store.Fatal,
			Logger:        o.Logger,
		}
	case config.ElectionJetStream:
		p.keyValue = &election.KeyValueOptions{
			Key:      c.Election.Key,
			Name:     o.Name,
			Replicas: c.Stream.Replicas,
			Domain:   c.NATS.Domain,
			Logger:   o.Logger,
		}
	case config.ElectionNone:
	}
	return p, errors.Join(faults...)
}

// noArchive is what is given up without an archive.
const noArchive = "what the broker loses after it has acknowledged it, as in a crash before it was written to the disk, cannot be published again"

// elector makes the one that the relays of outbox agree by.
func (p plan) elector(outbox *store.Outbox) (relay.Elector, error) {
	switch {
	case outbox == nil: // Nobody will campaign.
	case p.lock != nil:
		return election.NewAdvisoryLock(outbox.Session(), *p.lock), nil
	case p.keyValue != nil:
		options := *p.keyValue
		if options.Key == "" {
			// Not the host: each relay may know it by another name.
			options.Key = election.KeyOf(p.publisher.Setup.Stream, outbox.Database(), p.store.Table.Schema, p.store.Table.Name)
		}
		connect := p.publisher.Connect
		// The publisher drops its connection with the leadership; this one is the elector's own.
		elector, err := election.NewKeyValue(func(ctx context.Context) (*nats.Conn, error) { return stream.Connect(ctx, connect) }, options)
		if err != nil {
			return nil, fmt.Errorf("election: %w", err)
		}
		return elector, nil
	}
	return election.Always{}, nil
}

// embeddedURL stands for that of an embedded server that does not run yet.
const embeddedURL = "nats://embedded"

func connectOptions(c config.NATS, o Options) stream.ConnectOptions {
	if c.Embedded() {
		// It is the program's own, and asks for no credentials.
		return stream.ConnectOptions{URL: o.NATSURL, Name: o.ClientName}
	}
	return stream.ConnectOptions{
		URL:       cmp.Or(o.NATSURL, string(c.URL)),
		Name:      o.ClientName,
		CredsFile: c.Creds,
		NKeyFile:  c.NKey,
		TLSCA:     c.TLSCA,
		TLSCert:   c.TLSCert,
		TLSKey:    c.TLSKey,

		TLSFirst:    c.TLSFirst,
		InboxPrefix: c.InboxPrefix,
		Domain:      c.Domain,
	}
}
