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
)

// Defaults of a [KeyValue].
const (
	DefaultBucket = "OUTBOX_election"
	DefaultKey    = "leader"
)

// Bounds of KeyValueOptions.Lease: below, an ordinary delay costs the leadership, and above it is a mistake.
const (
	minLease = time.Second
	maxLease = time.Minute
)

// What a stop may take if nobody answers, so that the process can end within a second.
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
	// Key is the entry that relays of one outbox compete for: the same for all of them, and for no others, since only one
	// of those who share it ever relays. [KeyOf] makes one of any names. The default is DefaultKey.
	Key string
	// Name says in the entry and in the rivals' logs who leads. The default is the host's name and the process ID.
	Name string
	// Lease is how long a leader may act after the start of its last good update, from a second to a minute. Rivals may
	// have different ones. Package relay reckons with the default, LeaseDuration: what is longer, the stream's duplicate
	// window must be longer by, too.
	Lease time.Duration
	// Retry is how often a standby looks at the entry, beside watching it. The default is DefaultRetry.
	Retry time.Duration
	// Replicas is the number of servers that keep a bucket that the elector creates, 1 to 5. The default is 1; in a cluster,
	// 3 lets the election outlast a server.
	Replicas int
	// Domain is the JetStream domain that the bucket is in. The default is that of the servers to which the connection is.
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
	js, err := await(ctx, func() (jetstream.JetStream, error) {
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
	if strings.ContainsFunc(o.Bucket, func(r rune) bool { return !plain(r) }) {
		refuse("Bucket: %q has a character that NATS forbids: want letters, digits, - and _", o.Bucket)
	}
	if o.Key == "" {
		o.Key = DefaultKey
	}
	if strings.ContainsFunc(o.Key, func(r rune) bool { return !plain(r) && !strings.ContainsRune("/=.", r) }) {
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

// KeyOf returns a key that is different for different lists of names, whatever is in them: a database's, a table's.
func KeyOf(names ...string) string {
	tokens := make([]string, len(names))
	for i, name := range names {
		var token strings.Builder
		for _, b := range []byte(name) {
			if plain(rune(b)) {
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

// plain reports whether r may be anywhere in a bucket's and in a key's name.
func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// KeyValue elects whoever holds an entry of a JetStream key-value bucket.
//
// The holder writes the entry again every second or so, each time on the revision before, and its lease counts from before
// the last such update that succeeded. A rival takes the entry over, on the revision that it saw, once it was deleted by
// the one who resigned, or has not changed for longer than its lease since that rival saw it. So it all rests on the
// server's check of the revision and on how fast each machine's monotonic clock runs: on nobody's wall clock, as the expiry
// of entries would, which the servers judge by theirs. An old state that is read just leads to an update that is refused.
type KeyValue struct {
	*campaign

	connect func(ctx context.Context) (*nats.Conn, error)
	options KeyValueOptions
}

// NewKeyValue returns an elector on a connection of its own, which connect makes once Run needs it, and which Run closes.
// It had better reconnect for ever by itself and not keep what is published meanwhile (stream.Connect makes such ones).
// NewKeyValue connects to nothing; its error lists every option that is out of range.
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
	link := &link{connect: k.connect, options: k.options}
	defer link.close(ctx)
	return k.run(ctx, k.candidacy(link.open).acquire, lead)
}

// Standby reports whether another leads, as far as is known: the entry said so not long ago.
func (k *KeyValue) Standby() bool { return k.standby() }

// candidacy is what one Run knows.
type candidacy struct {
	*KeyValue

	open  func(ctx context.Context) (seat, error) // Returns what is competed for, as soon as it can be reached.
	id    string                                  // Nobody else's.
	beats uint64                                  // How often the entry was written, or may have been.

	// rival is the newest entry of somebody else, and since is when it was first seen.
	rival sight
	since time.Time
}

func (k *KeyValue) candidacy(open func(ctx context.Context) (seat, error)) *candidacy {
	return &candidacy{KeyValue: k, open: open, id: rand.Text()}
}

// acquire returns once the entry is held.
func (c *candidacy) acquire(ctx context.Context) (tenure, error) {
	seat, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := seat.look(ctx)
	if err != nil {
		return nil, err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var updates <-chan jetstream.KeyValueEntry
	blind, told := false, false
	for {
		wait := time.Until(c.vacant(seen))
		if wait <= 0 {
			won, err := c.take(ctx, seat, seen)
			if err == nil {
				return won, nil
			}
			if !errors.Is(err, errMoved) {
				return nil, err
			}
			wait = c.retry // Somebody was faster, or what was seen was out of date.
		}
		if updates == nil && !blind {
			// It begins with what there is, so nothing is missed.
			if updates, err = seat.watch(watching); err != nil {
				blind = true
				c.log.LogAttrs(ctx, slog.LevelDebug, "cannot watch the leader's entry; polling it instead", slog.Any("error", err))
			}
		}
		known := c.rival.held()
		c.standBy(ctx, known && !told, slog.String("leader", c.rival.holder.Leader))
		told = told || known
		if seen, updates, err = c.await(ctx, seat, updates, min(wait, c.retry)); err != nil {
			return nil, err
		}
	}
}

// vacant returns when the entry that was seen just now can be taken: a time that has passed, if nobody can believe any more
// that it is his.
func (c *candidacy) vacant(seen sight) time.Time {
	ours := seen.holder.Candidacy == c.id // Of a term that is over, or of an attempt that was not answered.
	if seen.held() && !ours {
		if seen != c.rival {
			c.rival, c.since = seen, time.Now()
		}
	} else if seen.revision > c.rival.revision {
		return time.Time{} // The rival has resigned, or there never was one.
	}
	// Otherwise either the rival holds it, or its entry has vanished, with the memory of a server or somebody's backup, and
	// the rival need not know.
	return c.since.Add(c.rival.holder.patience())
}

// take tries to become the holder of the entry that was seen.
func (c *candidacy) take(ctx context.Context, seat seat, seen sight) (*holding, error) {
	h := &holding{candidacy: c, seat: seat, revision: seen.revision}
	// Who is told to stop meanwhile still wants to know, to resign.
	taking, cancel := outlast(ctx, lastWrite)
	defer cancel()
	if err := h.update(taking); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		h.resign(context.WithoutCancel(ctx))
		return nil, context.Cause(ctx)
	}
	if former := seen.holder; seen.held() && former.Candidacy != c.id {
		c.log.LogAttrs(ctx, slog.LevelWarn, "the leader has gone silent; taking over", slog.String("leader", former.Leader))
	}
	return h, nil
}

// await returns the entry when it has changed, or after a while, and updates unless they have ended.
func (c *candidacy) await(ctx context.Context, seat seat, updates <-chan jetstream.KeyValueEntry, d time.Duration) (sight, <-chan jetstream.KeyValueEntry, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return sight{}, updates, context.Cause(ctx)
		case entry, ok := <-updates:
			if !ok {
				updates = nil
			}
			if entry == nil {
				continue // All that there was has been told.
			}
			seen, err := sightOf(entry.Revision(), entry.Operation() != jetstream.KeyValuePut, entry.Value())
			if err != nil {
				return sight{}, updates, fmt.Errorf("key %s of bucket %q: %w", c.options.Key, c.options.Bucket, err)
			}
			return seen, updates, nil
		case <-timer.C:
			seen, err := seat.look(ctx)
			return seen, updates, err
		}
	}
}

// claim returns the next value of the entry.
func (c *candidacy) claim() claim {
	c.beats++
	return claim{Leader: c.options.Name, Candidacy: c.id, Beat: c.beats, Lease: c.lease.Milliseconds()}
}

// holding is the entry while it is ours.
type holding struct {
	*candidacy

	seat     seat
	revision uint64 // The entry's, unless there is doubt.
	doubt    bool   // A write was not answered, and may have moved it.

	renewed atomic.Pointer[time.Time] // When the last update that succeeded began.
	lost    atomic.Bool
}

// errTaken says that there is no use in trying again.
var errTaken = errors.New("the entry was taken over, changed or deleted")

// until implements tenure.
func (h *holding) until() (time.Time, bool) { return h.renewed.Load().Add(h.lease), !h.lost.Load() }

// renew implements tenure.
func (h *holding) renew(ctx context.Context) error {
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

// extend updates the entry before the lease ends, in as many attempts as it takes. It returns nil too if ctx has ended.
func (h *holding) extend(ctx context.Context, end time.Time) error {
	// A leader who stops meanwhile still wants to know the revision, to resign.
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

// update makes one attempt to write the entry, which begins the lease anew.
func (h *holding) update(ctx context.Context) error {
	var start time.Time
	err := h.write(ctx, func(ctx context.Context, revision uint64) (uint64, error) {
		start = time.Now() // From before the request: the answer says only that it was ours then.
		return h.seat.take(ctx, h.claim(), revision)
	})
	if err == nil {
		h.renewed.Store(&start)
	}
	return err
}

// write has request write on the entry's revision. It returns errTaken if the entry is not ours any more. After another
// error, it may be written all the same.
func (h *holding) write(ctx context.Context, request func(ctx context.Context, revision uint64) (uint64, error)) error {
	for {
		revision, err := request(ctx, h.revision)
		switch {
		case err == nil:
			// What was not answered is refused from now on.
			h.revision, h.doubt = revision, false
			return nil
		case errors.Is(err, errInProcess): // Another write, maybe our own of before.
			return err
		case !errors.Is(err, errMoved):
			h.doubt = true
			return err
		case !h.doubt:
			return fmt.Errorf("%w: %w", errTaken, err)
		}
		// A write of ours that was not answered may have moved it. What is read may be old, so it serves to find out which
		// revision to try, and the next update tells whether that was right.
		seen, lookErr := h.seat.look(ctx)
		switch {
		case lookErr != nil:
			return errors.Join(err, lookErr)
		case seen.revision <= h.revision:
			return err
		case seen.holder.Candidacy != h.id:
			return fmt.Errorf("%w: %w", errTaken, err)
		}
		h.revision = seen.revision
	}
}

// resign implements tenure. If it fails, the rivals wait for as long as the lease takes.
func (h *holding) resign(ctx context.Context) {
	if !NewLease(h.until).Valid() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resignTimeout)
	defer cancel()
	for {
		err := h.write(ctx, func(ctx context.Context, revision uint64) (uint64, error) {
			return revision, h.seat.leave(ctx, revision)
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
