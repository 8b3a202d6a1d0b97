package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/await"
)

// record is the entry of the bucket that candidates compete for. Each call is bounded in time and ends with its context. Only
// a watch lasts as long as its context.
type record interface {
	// read returns the entry, or an older state of the entry.
	read(ctx context.Context) (observed, error)
	// write and delete write and delete the entry if its revision is still the given one: 0 for an entry that never existed.
	// Otherwise they return errMoved. write returns the new revision.
	write(ctx context.Context, value leaseValue, revision uint64) (uint64, error)
	delete(ctx context.Context, revision uint64) error
	// watch sends the present entry and then each change, late or not at all.
	watch(ctx context.Context) (<-chan jetstream.KeyValueEntry, error)
}

var (
	// errUnfit is a fault that waiting does not mend.
	errUnfit = errors.New("unfit for an election")
	// errMoved says that the entry has another revision.
	errMoved = errors.New("the entry has another revision")
	// errInProcess is an errMoved that leaves the outcome open: a replicated bucket is still processing another write.
	errInProcess = fmt.Errorf("%w, or soon will have", errMoved)
)

// leaseValue is the entry's value. No two writes have the same value.
type leaseValue struct {
	Leader    string `json:"leader"` // For humans.
	Candidate string `json:"candidacy"`
	Beat      uint64 `json:"beat"`
	Lease     int64  `json:"lease_ms"`
}

// patience is how long a rival must have seen the entry unchanged before it takes the entry over: the lease and a fifth. The
// fifth is a margin for machines whose clocks do not run equally fast; few need that much.
func (c leaseValue) patience() time.Duration {
	lease := time.Duration(c.Lease) * time.Millisecond
	return lease + lease/5
}

// Time budgets of a lease: 1.1 s and 1.25 s of 5 s. So a lease leaves time for a second and a third attempt to renew it.
func (o KeyValueOptions) renewAfter() time.Duration     { return o.Lease * 22 / 100 }
func (o KeyValueOptions) requestTimeout() time.Duration { return o.Lease / 4 }

// observed is the entry as a candidate saw it.
type observed struct {
	revision uint64     // 0 if there was none.
	value    leaseValue // The zero value if it was deleted, or there was none.
}

// held reports whether somebody held the entry.
func (s observed) held() bool { return s.value != leaseValue{} }

func observedOf(revision uint64, deleted bool, value []byte) (observed, error) {
	if deleted {
		return observed{revision: revision}, nil
	}
	seen := observed{revision: revision}
	err := json.Unmarshal(value, &seen.value)
	if lease := seen.value.Lease; err != nil || seen.value.Candidate == "" || lease <= 0 || lease > maxLease.Milliseconds() {
		return observed{}, fmt.Errorf("%w: it has a value that no elector wrote; delete it, or name another key", errUnfit)
	}
	return seen, nil
}

// client is an elector's connection to NATS.
type client struct {
	connect func(ctx context.Context) (*nats.Conn, error)
	options KeyValueOptions
	conn    *nats.Conn // Nil before open.
}

// closeTimeout bounds closing a connection: nats.go may first send what is in the buffer.
const closeTimeout = 100 * time.Millisecond

func (l *client) close(ctx context.Context) {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = await.Done(ctx, func() error {
		l.conn.Close()
		return nil
	})
}

// open connects if there is no connection, and makes sure that there is a fit bucket.
func (l *client) open(ctx context.Context) (record, error) {
	if err := l.connected(ctx); err != nil {
		return nil, err
	}
	js, err := l.options.jetStream(ctx, l.conn)
	if err != nil {
		return nil, err
	}
	e := &kvRecord{conn: l.conn, options: l.options}
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
func (l *client) connected(ctx context.Context) error {
	if l.conn != nil {
		conn := l.conn
		looking, cancel := context.WithTimeout(ctx, l.options.requestTimeout())
		defer cancel()
		err := await.Done(looking, func() error {
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

// VerifyBucket verifies the bucket that a [KeyValue] with these options uses, as the KeyValue does, but creates none. If the
// bucket does not exist, the error wraps jetstream.ErrBucketNotFound.
func VerifyBucket(ctx context.Context, conn *nats.Conn, options KeyValueOptions) error {
	options, err := options.validated()
	if err != nil {
		return fmt.Errorf("key-value election: %w", err)
	}
	js, err := options.jetStream(ctx, conn)
	if err != nil {
		return err
	}
	return (&kvRecord{conn: conn, options: options}).find(ctx, js)
}

// kvRecord is the record in a JetStream key-value bucket.
type kvRecord struct {
	conn    *nats.Conn
	options KeyValueOptions
	kv      jetstream.KeyValue
	stream  jetstream.Stream // Of the bucket: kv does not tell the revision of a deletion.
}

func (e *kvRecord) streamName() string { return "KV_" + e.options.Bucket }

// find looks the bucket up and verifies that it is fit.
func (e *kvRecord) find(ctx context.Context, js jetstream.JetStream) error {
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

// create creates the bucket, unless somebody else has just created it. Its entries do not expire: the servers would decide
// that by their wall clocks.
func (e *kvRecord) create(ctx context.Context, js jetstream.JetStream) error {
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
	// codeMaxBytesNeeded: the account demands that each stream sets max_bytes.
	codeMaxBytesNeeded = 10113

	// bucketBytes is the bucket's max_bytes where the account demands one: an entry takes less than 1 KiB.
	bucketBytes = 1 << 20
)

// expiryMargin is how much longer than a lease entries must live if they expire. A server's wall clock may be set forward by
// that much at a time.
const expiryMargin = time.Minute

// verify refuses a bucket that would let two relays lead.
func (e *kvRecord) verify() error {
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

func (e *kvRecord) unfit(format string, args ...any) error {
	return fmt.Errorf("bucket %q is %w: "+format, append([]any{e.options.Bucket, errUnfit}, args...)...)
}

// ask makes a request within requestTimeout.
func ask[T any](ctx context.Context, e *kvRecord, what string, request func(ctx context.Context) (T, error)) (T, error) {
	asking, cancel := context.WithTimeout(ctx, e.options.requestTimeout())
	defer cancel()
	answer, err := await.Call(asking, func() (T, error) {
		before := e.conn.LastError()
		answer, err := request(asking)
		switch reason := e.conn.LastError(); {
		case errors.Is(err, nats.ErrReconnectBufExceeded):
			err = fmt.Errorf("not connected to NATS (%w)", err)
		case errors.Is(err, context.DeadlineExceeded) && errors.Is(reason, nats.ErrPermissionViolation) && reason != before: //nolint:errorlint // Whether it is news.
			err = fmt.Errorf("%w: %w", err, reason) // The server does not answer what it does not permit.
		}
		return answer, err
	})
	if err != nil {
		err = fmt.Errorf("%s bucket %q: %w", what, e.options.Bucket, err)
	}
	return answer, err
}

// read implements record. If the bucket allows direct gets, as those do that nats.go creates, any replica answers.
func (e *kvRecord) read(ctx context.Context) (observed, error) {
	return ask(ctx, e, "read key "+e.options.Key+" of", func(ctx context.Context) (observed, error) {
		msg, err := e.stream.GetLastMsgForSubject(ctx, "$KV."+e.options.Bucket+"."+e.options.Key)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return observed{}, nil
		}
		if err != nil {
			return observed{}, err
		}
		deleted := msg.Header.Get("KV-Operation") != "" || msg.Header.Get(jetstream.MarkerReasonHeader) != ""
		return observedOf(msg.Sequence, deleted, msg.Data)
	})
}

// write implements record.
func (e *kvRecord) write(ctx context.Context, value leaseValue, revision uint64) (uint64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, fmt.Errorf("encode the lease: %w", err)
	}
	return ask(ctx, e, "write key "+e.options.Key+" of", func(ctx context.Context) (uint64, error) {
		written, err := e.kv.Update(ctx, e.options.Key, data, revision)
		return written, moved(err)
	})
}

// delete implements record.
func (e *kvRecord) delete(ctx context.Context, revision uint64) error {
	_, err := ask(ctx, e, "delete key "+e.options.Key+" of", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, moved(e.kv.Delete(ctx, e.options.Key, jetstream.LastRevision(revision)))
	})
	return err
}

// moved recognises that a write was refused because its revision is old.
func moved(err error) error {
	if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return err
	}
	if refusal, ok := errors.AsType[*jetstream.APIError](err); ok && refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant {
		return fmt.Errorf("%w (%w)", errInProcess, err)
	}
	return fmt.Errorf("%w (%w)", errMoved, err)
}

// watch implements record.
func (e *kvRecord) watch(ctx context.Context) (<-chan jetstream.KeyValueEntry, error) {
	// Not a context with a deadline: it would end the watch, too.
	ctx, cancel := context.WithCancel(ctx)
	timeout := time.AfterFunc(e.options.requestTimeout(), cancel)
	defer timeout.Stop()
	watcher, err := await.Call(ctx, func() (jetstream.KeyWatcher, error) { return e.kv.Watch(ctx, e.options.Key) })
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch key %s of bucket %q: %w", e.options.Key, e.options.Bucket, err)
	}
	return watcher.Updates(), nil
}
