package consumer_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/consumer"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// patience is how long anything here may take before the test fails.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if dsn := os.Getenv(workerDSN); dsn != "" {
		work(dsn, os.Getenv(workerNATS))
		return
	}
	storetest.Main(m)
}

// world is a stream, and a database with a journal of effects.
type world struct {
	*testing.T

	dsn      string
	nats     *streamtest.Server
	storeDir string // The server's.
	js       jetstream.JetStream
	pool     *pgxpool.Pool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, dsn: storetest.NewDatabase(t), nats: streamtest.Start(t)}
	w.storeDir = w.nats.NATS().StoreDir()
	w.js = w.nats.JetStream(t)
	w.pool = newPool(t, w.dsn)
	w.exec(`create table journal (place bigint generated always as identity, aggregate text, seq bigint, sequence bigint)`)
	w.createStream()
	return w
}

func newPool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (w *world) createStream() {
	w.Helper()
	if _, err := w.js.CreateStream(w.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) exec(sql string) {
	w.Helper()
	if _, err := w.pool.Exec(w.Context(), sql); err != nil {
		w.Fatal(err)
	}
}

// count is what a query that returns a number returns.
func (w *world) count(sql string) (n int) {
	w.Helper()
	if err := w.pool.QueryRow(w.Context(), sql).Scan(&n); err != nil {
		w.Fatal(err)
	}
	return n
}

// publish stores events as the relay does: seq i is of aggregate i modulo aggregates. Each time they have new ids, so that the
// stream takes them again.
func (w *world) publish(from, to, aggregates int64) {
	w.Helper()
	for seq := from; seq <= to; seq++ {
		w.store(event(seq, fmt.Sprint(seq%aggregates)))
	}
}

func event(seq int64, aggregate string) *stream.Event {
	return &stream.Event{
		Seq: seq, ID: uuid.New(), CreatedAt: time.Now(),
		Topic: "users", AggregateType: "User", AggregateID: aggregate, EventType: "Changed", Data: fmt.Append(nil, seq),
	}
}

func (w *world) store(e *stream.Event) {
	w.Helper()
	template, err := stream.ParseTemplate("")
	if err != nil {
		w.Fatal(err)
	}
	msg, err := stream.Encoder{Template: template}.Message(e, "")
	if err != nil {
		w.Fatal(err)
	}
	msg.Header.Set(stream.HeaderMsgID, e.ID.String())
	for deadline := time.Now().Add(patience); ; {
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		_, err := w.js.PublishMsg(ctx, msg)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.Fatal(err)
		}
	}
}

// journal is a handler whose effect is a line of the journal.
func journal(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
	_, err := tx.Exec(ctx, `insert into journal (aggregate, seq, sequence) values ($1, $2, $3)`, e.AggregateID, e.Seq, int64(e.Sequence))
	return err
}

// config is a consumer's that writes the journal.
func (w *world) config() consumer.Config {
	return consumer.Config{
		Name: "test", Pool: w.pool, JetStream: w.js, Handle: journal, Lanes: 8,
		RetryBackoff: 10 * time.Millisecond, RetryBackoffMax: 50 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(w.Output(), nil)),
	}
}

// start runs a consumer until the test ends or stop is called.
func (w *world) start(config consumer.Config) (c *consumer.Consumer, stop func()) {
	w.Helper()
	c, err := consumer.New(config)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	ended := make(chan error, 1)
	run := c.Run
	go func() { ended <- run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("Run: %v", err)
		}
	}
	w.Cleanup(stop)
	return c, stop
}

// await waits until the journal has so many lines.
func (w *world) await(lines int) {
	w.Helper()
	w.eventually(fmt.Sprintf("%d effects", lines), func() bool { return w.count(`select count(*) from journal`) >= lines })
}

func (w *world) eventually(what string, done func() bool) {
	w.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// audit demands that the journal has each of the seqs 1 to n once, and an aggregate's in their order.
func (w *world) audit(n int) {
	w.Helper()
	if got := w.count(`select count(*) from journal`); got != n {
		w.Errorf("%d effects, want %d", got, n)
	}
	if got := w.count(`select count(distinct seq) from journal`); got != n {
		w.Errorf("effects of %d events, want %d", got, n)
	}
	if got := w.count(`select count(*) from (select seq, lag(seq) over (partition by aggregate order by place) before from journal) j where before > seq`); got > 0 {
		w.Errorf("%d effects out of order", got)
	}
}

// copyOfStore copies what the stopped server has stored.
func (w *world) copyOfStore() (dir string) {
	w.Helper()
	dir = w.TempDir()
	if err := os.CopyFS(dir, os.DirFS(w.storeDir)); err != nil {
		w.Fatal(err)
	}
	return dir
}

// putBack makes a copy what the stopped server has stored.
func (w *world) putBack(dir string) {
	w.Helper()
	if err := os.RemoveAll(w.storeDir); err != nil {
		w.Fatal(err)
	}
	if err := os.CopyFS(w.storeDir, os.DirFS(dir)); err != nil {
		w.Fatal(err)
	}
}

// A process of the test that has these in its environment is a consumer: see work.
const (
	workerDSN  = "OUTBOX_TEST_CONSUMER_DSN"
	workerNATS = "OUTBOX_TEST_CONSUMER_NATS"
)
