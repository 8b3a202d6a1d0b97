package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// seat is the entry that is competed for. Each call is bounded in time and ends with its context, except that a watch lasts
// as long as its context.
type seat interface {
	// look returns the entry, or an older state of it.
	look(ctx context.Context) (sight, error)
	// take writes the entry, and leave deletes it, if its revision is still that one, 0 for an entry that never was.
	// Otherwise they return errMoved.
	take(ctx context.Context, value claim, revision uint64) (uint64, error)
	leave(ctx context.Context, revision uint64) error
	// watch tells what there is and each change, after a delay or not at all.
	watch(ctx context.Context) (<-chan jetstream.KeyValueEntry, error)
}

var (
	// errUnfit is what waiting does not mend.
	errUnfit = errors.New("unfit for an election")
	// errMoved says that the entry has another revision.
	errMoved = errors.New("the entry has another revision")
	// errInProcess is an errMoved that says nothing about the outcome yet: a replicated bucket has a write in process.
	errInProcess = fmt.Errorf("%w, or soon will have", errMoved)
)

// claim is the value of an entry. No two that are written are the same.
type claim struct {
	Leader    string `json:"leader"` // For humans.
	Candidacy string `json:"candidacy"`
	Beat      uint64 `json:"beat"`
	Lease     int64  `json:"lease_ms"`
}

// patience is how long an entry has to stay the same until it is taken over. The margin is for clocks that do not run
// equally fast; the rest of it is left over.
func (c claim) patience() time.Duration {
	lease := time.Duration(c.Lease) * time.Millisecond
	return lease + lease/5
}

// Time budgets of a lease: 1.1 s and 1.25 s of 5 s, so that it can be renewed in a second and in a third attempt.
func (o KeyValueOptions) renewAfter() time.Duration     { return o.Lease * 22 / 100 }
func (o KeyValueOptions) requestTimeout() time.Duration { return o.Lease / 4 }

// sight is an entry as it was seen.
type sight struct {
	revision uint64 // 0 if there was none.
	holder   claim  // The zero claim if it was deleted, or there was none.
}

// held reports whether the entry was somebody's.
func (s sight) held() bool { return s.holder != claim{} }

func sightOf(revision uint64, deleted bool, value []byte) (sight, error) {
	if deleted {
		return sight{revision: revision}, nil
	}
	seen := sight{revision: revision}
	err := json.Unmarshal(value, &seen.holder)
	if lease := seen.holder.Lease; err != nil || seen.holder.Candidacy == "" || lease <= 0 || lease > maxLease.Milliseconds() {
		return sight{}, fmt.Errorf("%w: it has a value that no elector wrote; delete it, or name another key", errUnfit)
	}
	return seen, nil
}

// link is an elector's connection.
type link struct {
	connect func(ctx context.Context) (*nats.Conn, error)
	options KeyValueOptions
	conn    *nats.Conn // Nil before open.
}

// closeTimeout bounds closing a connection, which may want to send what is in its buffer first.
const closeTimeout = 100 * time.Millisecond

func (l *link) close(ctx context.Context) {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = awaitErr(ctx, func() error {
		l.conn.Close()
		return nil
	})
}

// open connects, if there is no connection, and makes sure that there is a fit bucket.
func (l *link) open(ctx context.Context) (seat, error) {
	if err := l.connected(ctx); err != nil {
		return nil, err
	}
	js, err := l.options.jetStream(ctx, l.conn)
	if err != nil {
		return nil, err
	}
	e := &entry{conn: l.conn, options: l.options}
	err = e.find(ctx, js)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if err := e.create(ctx, js); err != nil {
			return nil, err
		}
		err = e.find(ctx, js)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// errClosed says that a connection is over for good.
var errClosed = errors.New("closed")

// connected makes sure that there is a connection.
func (l *link) connected(ctx context.Context) error {
	if l.conn != nil {
		conn := l.conn
		looking, cancel := context.WithTimeout(ctx, l.options.requestTimeout())
		defer cancel()
		err := awaitErr(looking, func() error {
			switch {
			case conn.IsConnected():
				return nil
			case conn.IsClosed():
				return errClosed
			}
			if err := conn.LastError(); err != nil {
				return err
			}
			return nats.ErrDisconnected
		})
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errClosed):
			return fmt.Errorf("not connected to NATS: %w", err)
		}
	}
	conn, err := l.connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	l.conn = conn
	return nil
}

// VerifyBucket looks at the bucket that a [KeyValue] with these options competes in, as it does itself, but creates none: if
// there is none, jetstream.ErrBucketNotFound is in the error.
func VerifyBucket(ctx context.Context, conn *nats.Conn, options KeyValueOptions) error {
	options, err := options.validated()
	if err != nil {
		return fmt.Errorf("key-value election: %w", err)
	}
	js, err := options.jetStream(ctx, conn)
	if err != nil {
		return err
	}
	return (&entry{conn: conn, options: options}).find(ctx, js)
}

// entry is a seat in JetStream.
type entry struct {
	conn    *nats.Conn
	options KeyValueOptions
	kv      jetstream.KeyValue
	stream  jetstream.Stream // Of the bucket: kv does not tell the revision of a deletion.
}

func (e *entry) streamName() string { return "KV_" + e.options.Bucket }

// find looks the bucket up, and whether it is fit.
func (e *entry) find(ctx context.Context, js jetstream.JetStream) error {
	kv, err := ask(ctx, e, "look up", func(ctx context.Context) (jetstream.KeyValue, error) {
		return js.KeyValue(ctx, e.options.Bucket)
	})
	if errors.Is(err, jetstream.ErrBadBucket) {
		return e.unfit("its stream, %s, is none that holds a bucket", e.streamName())
	}
	if err != nil {
		return err
	}
	found, err := ask(ctx, e, "look up", func(ctx context.Context) (jetstream.Stream, error) {
		return js.Stream(ctx, e.streamName())
	})
	if err != nil {
		return err
	}
	e.kv, e.stream = kv, found
	return e.verify()
}

// create creates the bucket, unless somebody else just did. Its entries do not expire: the servers would judge that by
// their wall clocks.
func (e *entry) create(ctx context.Context, js jetstream.JetStream) error {
	config := jetstream.KeyValueConfig{
		Bucket:      e.options.Bucket,
		Description: "Which relay of an outbox leads.",
		Replicas:    max(e.options.Replicas, 1),
	}
	create := func() error {
		config := config
		_, err := ask(ctx, e, "create", func(ctx context.Context) (jetstream.KeyValue, error) { return js.CreateKeyValue(ctx, config) })
		return err
	}
	err := create()
	if refusal, ok := errors.AsType[*jetstream.APIError](err); ok && refusal.ErrorCode == codeMaxBytesNeeded {
		config.MaxBytes = bucketBytes
		err = create()
	}
	if errors.Is(err, jetstream.ErrBucketExists) {
		return nil
	}
	return err
}

const (
	// codeMaxBytesNeeded: the account demands that a stream says how much it keeps at most.
	codeMaxBytesNeeded = 10113

	// bucketBytes is what a bucket keeps where it has to say so: an entry takes less than 1 KiB.
	bucketBytes = 1 << 20
)

// expiryMargin is how much longer than it may be held an entry has to live, if it does not for ever. The servers' wall
// clocks may be set by that much at a time.
const expiryMargin = time.Minute

// verify refuses a bucket with which two could lead.
func (e *entry) verify() error {
	config := e.stream.CachedInfo().Config
	if least := e.options.Lease + expiryMargin; config.MaxAge != 0 && config.MaxAge < least {
		return e.unfit("its entries expire after %v, and not before %v is safe with a lease of %v;"+
			" let them live for ever (nats stream edit %s --max-age=0), or name another bucket", config.MaxAge, least, e.options.Lease, config.Name)
	}
	if config.Mirror != nil {
		return e.unfit("it is a mirror; name that which it mirrors (%s), or another bucket", config.Mirror.Name)
	}
	return nil
}

func (e *entry) unfit(format string, args ...any) error {
	return fmt.Errorf("bucket %q is %w: "+format, append([]any{e.options.Bucket, errUnfit}, args...)...)
}

// ask makes a request within its time.
func ask[T any](ctx context.Context, e *entry, what string, request func(ctx context.Context) (T, error)) (T, error) {
	asking, cancel := context.WithTimeout(ctx, e.options.requestTimeout())
	defer cancel()
	answer, err := await(asking, func() (T, error) {
		before := e.conn.LastError()
		answer, err := request(asking)
		switch reason := e.conn.LastError(); {
		case errors.Is(err, nats.ErrReconnectBufExceeded):
			err = fmt.Errorf("not connected to NATS (%w)", err)
		case errors.Is(err, context.DeadlineExceeded) && errors.Is(reason, nats.ErrPermissionViolation) && reason != before: //nolint:errorlint // Whether it is news.
			err = fmt.Errorf("%w: %w", err, reason) // What is not permitted is not answered.
		}
		return answer, err
	})
	if err != nil {
		err = fmt.Errorf("%s bucket %q: %w", what, e.options.Bucket, err)
	}
	return answer, err
}

// look implements seat. Where the bucket allows direct gets, as those that the client creates do, any replica answers.
func (e *entry) look(ctx context.Context) (sight, error) {
	return ask(ctx, e, "read key "+e.options.Key+" of", func(ctx context.Context) (sight, error) {
		msg, err := e.stream.GetLastMsgForSubject(ctx, "$KV."+e.options.Bucket+"."+e.options.Key)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return sight{}, nil
		}
		if err != nil {
			return sight{}, err
		}
		deleted := msg.Header.Get("KV-Operation") != "" || msg.Header.Get(jetstream.MarkerReasonHeader) != ""
		return sightOf(msg.Sequence, deleted, msg.Data)
	})
}

// take implements seat.
func (e *entry) take(ctx context.Context, value claim, revision uint64) (uint64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, fmt.Errorf("claim: %w", err)
	}
	return ask(ctx, e, "write key "+e.options.Key+" of", func(ctx context.Context) (uint64, error) {
		written, err := e.kv.Update(ctx, e.options.Key, data, revision)
		return written, moved(err)
	})
}

// leave implements seat.
func (e *entry) leave(ctx context.Context, revision uint64) error {
	_, err := ask(ctx, e, "delete key "+e.options.Key+" of", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, moved(e.kv.Delete(ctx, e.options.Key, jetstream.LastRevision(revision)))
	})
	return err
}

// moved recognises the refusal of a write on an old revision.
func moved(err error) error {
	if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return err
	}
	if refusal, ok := errors.AsType[*jetstream.APIError](err); ok && refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant {
		return fmt.Errorf("%w (%w)", errInProcess, err)
	}
	return fmt.Errorf("%w (%w)", errMoved, err)
}

// watch implements seat.
func (e *entry) watch(ctx context.Context) (<-chan jetstream.KeyValueEntry, error) {
	// A deadline would be that of the watch.
	ctx, cancel := context.WithCancel(ctx)
	timeout := time.AfterFunc(e.options.requestTimeout(), cancel)
	defer timeout.Stop()
	watcher, err := await(ctx, func() (jetstream.KeyWatcher, error) { return e.kv.Watch(ctx, e.options.Key) })
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch key %s of bucket %q: %w", e.options.Key, e.options.Bucket, err)
	}
	return watcher.Updates(), nil
}
