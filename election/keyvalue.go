package election

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/await"
)

// Defaults of a [KeyValue].
const (
	DefaultBucket = "OUTBOX_election"
	DefaultKey    = "leader"
)

// Bounds of KeyValueOptions.Lease. With a shorter lease an ordinary delay costs the leadership; a longer one is a mistake.
const (
	minLease = time.Second
	maxLease = time.Minute
)

// How long a stop may take if nobody answers: the process must end within a second.
const (
	lastWrite     = 250 * time.Millisecond // For a write that is under way.
	resignTimeout = 500 * time.Millisecond // To give the entry back.
)

// writeAgain is the pause after an update or a deletion that failed and may succeed.
const writeAgain = 50 * time.Millisecond

// KeyValueOptions configure a [KeyValue]. The zero value works, for one outbox an account of NATS.
type KeyValueOptions struct {
	// Bucket is the key-value bucket, one for any number of outboxes. It is created if it is absent; one that exists is
	// never altered, and refused if its entries expire too soon. The default is DefaultBucket.
	Bucket string
	// Key is the entry that the relays of one outbox compete for. All of them have the same key, and relays of another outbox
	// have another: of the relays with one key only one leads. [KeyOf] makes a key of any names. The default is DefaultKey.
	Key string
	// Name says in the entry and in the rivals' logs who leads. The default is the host's name and the process ID.
	Name string
	// Lease is how long a leader may act after the start of its last good update, from a second to a minute. Rivals may have
	// different leases. Package relay reckons with the default, LeaseDuration: with a longer lease, the stream's duplicate
	// window must be longer by the difference.
	Lease time.Duration
	// Retry is how often a standby reads the entry, although it watches it, too. The default is DefaultRetry.
	Retry time.Duration
	// Replicas is the number of replicas of a bucket that the elector creates, 1 to 5. The default is 1; in a cluster, 3 lets
	// the election outlast a server.
	Replicas int
	// Domain is the JetStream domain that the bucket is in. The default is the domain of the servers that the elector is
	// connected to.
	Domain string
	// Fatal tells errors that end Run from those it waits out. The default waits out all of them but an unfit bucket.
	Fatal func(error) bool
	// Logger receives what the elector waits for. The default discards it.
	Logger *slog.Logger
}

// jetStream returns JetStream as a connection reaches it.
func (o KeyValueOptions) jetStream(ctx context.Context, conn *nats.Conn) (jetstream.JetStream, error) {
	ctx, cancel := context.WithTimeout(ctx, o.requestTimeout())
	defer cancel()
	js, err := await.Call(ctx, func() (jetstream.JetStream, error) {
		if o.Domain != "" {
			return jetstream.NewWithDomain(conn, o.Domain)
		}
		return jetstream.New(conn)
	})
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	return js, nil
}

// validated fills in the defaults. Its error lists every option that is out of range.
func (o KeyValueOptions) validated() (KeyValueOptions, error) {
	var faults []error
	refuse := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if o.Bucket == "" {
		o.Bucket = DefaultBucket
	}
	if strings.ContainsFunc(o.Bucket, func(r rune) bool { return !safeInName(r) }) {
		refuse("Bucket: %q has a character that NATS forbids: want letters, digits, - and _", o.Bucket)
	}
	if o.Key == "" {
		o.Key = DefaultKey
	}
	if strings.ContainsFunc(o.Key, func(r rune) bool { return !safeInName(r) && !strings.ContainsRune("/=.", r) }) {
		refuse("Key: %q has a character that NATS forbids: want letters, digits, and - _ / = .", o.Key)
	}
	if strings.HasPrefix(o.Key, ".") || strings.HasSuffix(o.Key, ".") || strings.Contains(o.Key, "..") {
		refuse("Key: %q has an empty token: want none before, after or between dots", o.Key)
	}
	if o.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		o.Name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if o.Lease == 0 {
		o.Lease = LeaseDuration
	}
	if o.Lease < minLease || o.Lease > maxLease {
		refuse("Lease: %v is not from %v to %v", o.Lease, minLease, maxLease)
	}
	if o.Retry < 0 {
		refuse("Retry: %v is negative", o.Retry)
	}
	if o.Replicas < 0 || o.Replicas > 5 {
		refuse("Replicas: %d is not from 1 to 5", o.Replicas)
	}
	return o, errors.Join(faults...)
}

// KeyOf returns a key for a list of names, such as a database's and a table's. Different lists have different keys, whatever
// characters the names have.
func KeyOf(names ...string) string {
	tokens := make([]string, len(names))
	for i, name := range names {
		var token strings.Builder
		for _, b := range []byte(name) {
			if safeInName(rune(b)) {
				token.WriteByte(b)
			} else {
				fmt.Fprintf(&token, "=%02X", b)
			}
		}
		if name == "" {
			token.WriteByte('=')
		}
		tokens[i] = token.String()
	}
	return strings.Join(tokens, ".")
}

// safeInName reports whether r is allowed anywhere in the name of a bucket and of a key.
func safeInName(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// KeyValue elects whoever holds an entry of a JetStream key-value bucket.
//
// The leader updates the entry every second or so. Each update names the revision before it, and the leader's lease begins
// when it sends the last update that succeeds. A rival takes the entry over once the leader has resigned and deleted it, or
// once the rival has seen it unchanged for longer than the lease. The rival's update, too, names the revision that the rival
// saw. So the election rests on the server's check of the revision and on the speed of each machine's monotonic clock. It
// rests on no wall clock, as entries that expire would: the servers decide by theirs. A candidate that reads an old state
// sends an update that is refused.
type KeyValue struct {
	*campaign

	connect func(ctx context.Context) (*nats.Conn, error)
	options KeyValueOptions
}

// NewKeyValue returns an elector with a connection of its own. Run calls connect when it needs the connection, and closes it.
// The connection should reconnect for ever by itself and not buffer what is published meanwhile, as those of stream.Connect
// do. NewKeyValue itself connects to nothing; its error lists every option that is out of range.
func NewKeyValue(connect func(ctx context.Context) (*nats.Conn, error), options KeyValueOptions) (*KeyValue, error) {
	options, err := options.validated()
	if connect == nil {
		err = errors.Join(errors.New("connect: is nil"), err)
	}
	if err != nil {
		return nil, fmt.Errorf("key-value election: %w", err)
	}
	fatal := func(err error) bool { return errors.Is(err, errUnfit) || options.Fatal != nil && options.Fatal(err) }
	return &KeyValue{newCampaign(options.Lease, options.Retry, fatal, options.Logger), connect, options}, nil
}

// Run campaigns until it is elected, calls lead, and campaigns again when lead has returned, until ctx ends. The
// context that lead gets ends with the lease; lead must return soon after. Run returns nil when ctx has ended,
// and otherwise the error of lead, or one that Fatal knows, or that the bucket is unfit. The key is given back before Run
// returns, and the standbys are told.
func (k *KeyValue) Run(ctx context.Context, lead func(ctx context.Context, lease *Lease) error) error {
	client := &client{connect: k.connect, options: k.options}
	defer client.close(ctx)
	return k.run(ctx, k.newCandidate(client.open).acquire, lead)
}

// Standby reports whether another leads, as far as is known: the entry said so not long ago.
func (k *KeyValue) Standby() bool { return k.standby() }

// candidate is the state of one Run.
type candidate struct {
	*KeyValue

	open   func(ctx context.Context) (record, error) // Returns the record once it can be reached.
	id     string                                    // Unique for each Run.
	writes uint64                                    // How often this Run has tried to write the entry.

	// rival is the newest entry of another candidate, and since is when this one first saw it.
	rival observed
	since time.Time
}

func (k *KeyValue) newCandidate(open func(ctx context.Context) (record, error)) *candidate {
	return &candidate{KeyValue: k, open: open, id: rand.Text()}
}

// acquire returns once this candidate holds the entry.
func (c *candidate) acquire(ctx context.Context) (heldLease, error) {
	record, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := record.read(ctx)
	if err != nil {
		return nil, err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var updates <-chan jetstream.KeyValueEntry
	blind, told := false, false
	for {
		wait := time.Until(c.freeAt(seen))
		if wait <= 0 {
			won, err := c.take(ctx, record, seen)
			if err == nil {
				return won, nil
			}
			if !errors.Is(err, errMoved) {
				return nil, err
			}
			wait = c.retry // Another candidate was faster, or the entry that was read was out of date.
		}
		if updates == nil && !blind {
			// A watch begins with the present entry, so no change is missed.
			if updates, err = record.watch(watching); err != nil {
				blind = true
				c.log.LogAttrs(ctx, slog.LevelDebug, "cannot watch the leader's entry; polling it instead", slog.Any("error", err))
			}
		}
		known := c.rival.held()
		c.standBy(ctx, known && !told, slog.String("leader", c.rival.value.Leader))
		told = told || known
		if seen, updates, err = c.await(ctx, record, updates, min(wait, c.retry)); err != nil {
			return nil, err
		}
	}
}

// freeAt returns when the entry that was seen just now may be taken over. The time is in the past once no other candidate can
// still hold a valid lease.
func (c *candidate) freeAt(seen observed) time.Time {
	ours := seen.value.Candidate == c.id // Of a term that is over, or of an attempt that was not answered.
	if seen.held() && !ours {
		if seen != c.rival {
			c.rival, c.since = seen, time.Now()
		}
	} else if seen.revision > c.rival.revision {
		return time.Time{} // The rival has resigned, or there never was one.
	}
	// Otherwise the rival holds the entry. Or its entry has vanished, for a server lost its memory or somebody restored a backup,
	// and the rival may not know yet.
	return c.since.Add(c.rival.value.patience())
}

// take tries to take over the entry that was seen.
func (c *candidate) take(ctx context.Context, record record, seen observed) (*kvLease, error) {
	h := &kvLease{candidate: c, record: record, revision: seen.revision}
	// If ctx ends meanwhile, finish the write all the same: only then it is known whether there is an entry to give back.
	taking, cancel := outlast(ctx, lastWrite)
	defer cancel()
	if err := h.update(taking); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		h.resign(context.WithoutCancel(ctx))
		return nil, context.Cause(ctx)
	}
	if previous := seen.value; seen.held() && previous.Candidate != c.id {
		c.log.LogAttrs(ctx, slog.LevelWarn, "the leader has gone silent; taking over", slog.String("leader", previous.Leader))
	}
	return h, nil
}

// await returns the entry once it has changed or d has passed, and the channel of updates, nil if the watch has ended.
func (c *candidate) await(ctx context.Context, record record, updates <-chan jetstream.KeyValueEntry, d time.Duration) (observed, <-chan jetstream.KeyValueEntry, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return observed{}, updates, context.Cause(ctx)
		case entry, ok := <-updates:
			if !ok {
				updates = nil
			}
			if entry == nil {
				continue // The watch has sent the present entry.
			}
			seen, err := observedOf(entry.Revision(), entry.Operation() != jetstream.KeyValuePut, entry.Value())
			if err != nil {
				return observed{}, updates, fmt.Errorf("key %s of bucket %q: %w", c.options.Key, c.options.Bucket, err)
			}
			return seen, updates, nil
		case <-timer.C:
			seen, err := record.read(ctx)
			return seen, updates, err
		}
	}
}

// nextValue returns the value for the next write of the entry.
func (c *candidate) nextValue() leaseValue {
	c.writes++
	return leaseValue{Leader: c.options.Name, Candidate: c.id, Beat: c.writes, Lease: c.lease.Milliseconds()}
}

// kvLease is the lease of a candidate that holds the entry.
type kvLease struct {
	*candidate

	record   record
	revision uint64 // The entry's, unless in doubt.
	doubt    bool   // A write was not answered and may have changed the revision.

	renewed atomic.Pointer[time.Time] // When the last update that succeeded began.
	lost    atomic.Bool
}

// errTaken says that the lease is lost: to try again is of no use.
var errTaken = errors.New("the entry was taken over, changed or deleted")

// until implements heldLease.
func (h *kvLease) until() (time.Time, bool) { return h.renewed.Load().Add(h.lease), !h.lost.Load() }

// renew implements heldLease.
func (h *kvLease) renew(ctx context.Context) error {
	for {
		start := *h.renewed.Load()
		if !pause(ctx, time.Until(start.Add(h.options.renewAfter()))) {
			return nil
		}
		if err := h.extend(ctx, start.Add(h.lease)); err != nil {
			h.lost.Store(true)
			return fmt.Errorf("%w: %w", ErrLeaseLost, err)
		}
	}
}

// extend updates the entry before the lease ends, in as many attempts as that takes. It also returns nil once ctx has ended.
func (h *kvLease) extend(ctx context.Context, end time.Time) error {
	// If the leader stops meanwhile, finish the write all the same: to resign it needs the revision.
	outlasting, cancel := outlast(ctx, lastWrite)
	defer cancel()
	writing, cancel := context.WithDeadline(outlasting, end)
	defer cancel()
	for {
		err := h.update(writing)
		if err == nil || errors.Is(err, errTaken) {
			return err
		}
		if !pause(ctx, min(writeAgain, time.Until(end))) {
			return nil
		}
		if !time.Now().Before(end) {
			return fmt.Errorf("not renewed for %v: %w", h.lease, err)
		}
	}
}

// update makes one attempt to write the entry. If that succeeds, the lease begins anew.
func (h *kvLease) update(ctx context.Context) error {
	var start time.Time
	err := h.write(ctx, func(ctx context.Context, revision uint64) (uint64, error) {
		start = time.Now() // Before the request: the write may have taken effect at any time since.
		return h.record.write(ctx, h.nextValue(), revision)
	})
	if err == nil {
		h.renewed.Store(&start)
	}
	return err
}

// write calls request with the entry's revision. It returns errTaken if the entry is no longer ours. After any other error
// the entry may be written all the same.
func (h *kvLease) write(ctx context.Context, request func(ctx context.Context, revision uint64) (uint64, error)) error {
	for {
		revision, err := request(ctx, h.revision)
		switch {
		case err == nil:
			// Earlier writes that were not answered are refused from now on.
			h.revision, h.doubt = revision, false
			return nil
		case errors.Is(err, errInProcess): // Another write, perhaps an earlier one of ours.
			return err
		case !errors.Is(err, errMoved):
			h.doubt = true
			return err
		case !h.doubt:
			return fmt.Errorf("%w: %w", errTaken, err)
		}
		// A write of ours that was not answered may have changed the revision. The entry that is read now may be old, so its
		// revision is only the one to try next; the next write tells whether it was the right one.
		seen, lookErr := h.record.read(ctx)
		switch {
		case lookErr != nil:
			return errors.Join(err, lookErr)
		case seen.revision <= h.revision:
			return err
		case seen.value.Candidate != h.id:
			return fmt.Errorf("%w: %w", errTaken, err)
		}
		h.revision = seen.revision
	}
}

// resign implements heldLease. If it fails, the rivals wait until the lease has ended.
func (h *kvLease) resign(ctx context.Context) {
	if !NewLease(h.until).Valid() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resignTimeout)
	defer cancel()
	for {
		err := h.write(ctx, func(ctx context.Context, revision uint64) (uint64, error) {
			return revision, h.record.delete(ctx, revision)
		})
		if err == nil || errors.Is(err, errTaken) {
			return
		}
		if !pause(ctx, writeAgain) {
			h.log.LogAttrs(ctx, slog.LevelWarn, "could not resign; the next leader waits until the lease has ended", slog.Any("error", err))
			return
		}
	}
}
