package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// Whatever producers do, a relay sees every row that is committed, once, none that is not, and each aggregate's
// in the order of its changes, while its floor rises.
func TestReaderSeesEveryRowOnce(t *testing.T) {
	for name, hold := range map[string]string{
		"while nobody idles":        ``,
		"while a reader is idle":    `begin isolation level repeatable read; select from outbox`,
		"while a writer is idle":    `begin; select pg_current_xact_id()`,
		"while a producer is idle":  `begin; insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'Never', 'n', 'e', '')`,
		"while a savepoint is open": `begin; savepoint a; select pg_current_xact_id(); savepoint b; select pg_current_xact_id()`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, store.Options{})
			f.exec(t, `create table aggregate (id int primary key, version int not null default 0);
				insert into aggregate select generate_series(1, `+strconv.Itoa(aggregates)+`)`)
			if hold != "" {
				if _, err := connect(t, f.dsn).Exec(t.Context(), hold); err != nil {
					t.Fatal(err)
				}
			}
			// The transaction that inserts first commits last.
			first, err := connect(t, f.dsn).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			oldest := event("first")
			oldest.ID = uuid.New()
			if err := store.Insert(t.Context(), first, oldest); err != nil {
				t.Fatal(err)
			}

			committed := make(map[uuid.UUID]bool)
			var (
				mu        sync.Mutex // Protects committed.
				producing sync.WaitGroup
				produced  = make(chan error, 1)
			)
			for range 6 {
				p := &producer{conn: connect(t, f.dsn)}
				producing.Go(func() {
					for range 50 {
						ids, err := p.transact(t.Context())
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						for _, id := range ids {
							committed[id] = true
						}
						mu.Unlock()
					}
				})
			}
			go func() {
				producing.Wait()
				committed[oldest.ID] = true
				produced <- first.Commit(t.Context())
			}()

			r := &reader{f: f, seen: make(map[uuid.UUID]int), versions: make(map[string]int)}
			total := -1
			eventually(t, "the reader has seen all rows", func() bool {
				r.read(t)
				select {
				case err := <-produced:
					if err != nil {
						t.Fatal(err)
					}
					total = len(committed)
				default:
				}
				return len(r.seen) == total
			})
			for len(r.held) > 0 {
				r.read(t)
			}
			for id := range r.seen {
				if !committed[id] {
					t.Errorf("%s was seen and never committed", id)
				}
			}
			if left := f.inserted(t); len(left) > 0 {
				t.Errorf("%v were never settled", left)
			}
		})
	}
}

// A seq may be drawn long before its row can be seen, here because somebody else's trigger waits for something in
// between. The floor knows of it, also when it has to look who is in its way.
func TestFloorStaysBelowWhatIsDrawn(t *testing.T) {
	for name, hold := range map[string]string{
		"while nobody idles":     `select 1`,
		"while a writer is idle": `begin; select pg_current_xact_id()`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, store.Options{})
			if _, err := connect(t, f.dsn).Exec(t.Context(), hold); err != nil {
				t.Fatal(err)
			}
			f.exec(t, `
create function linger() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(4711); return new; end $$;
create trigger linger before insert on outbox for each row when (new.aggregate_id = 'slow') execute function linger();
select pg_advisory_lock(4711)`)
			// The first seq is logged, and for that the transaction gets its number; most of those that follow are not.
			f.insert(t, event("quick"))
			slow := connect(t, f.dsn)
			done := make(chan error, 1)
			go func() {
				_, err := slow.Exec(t.Context(), `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'a', 'slow', 'e', '')`)
				done <- err
			}()
			eventually(t, "the slow one waits", func() bool {
				return query[bool](t, f, `select exists (select from pg_locks where locktype = 'advisory' and not granted)`)
			})
			r := busyReader(t, f)
			f.exec(t, `select pg_advisory_unlock(4711)`)
			if err := await(t, "end of the slow insert", done); err != nil {
				t.Fatal(err)
			}
			r.finds(t, 1)
		})
	}
}

// busyReader reads for longer than the floor puts up with those that are in its way.
func busyReader(t *testing.T, f *fixture) *reader {
	t.Helper()
	r := &reader{f: f, seen: make(map[uuid.UUID]int), versions: make(map[string]int)}
	for until := time.Now().Add(200 * time.Millisecond); time.Now().Before(until) || len(r.seen) < 20; {
		f.insert(t, event("quick"))
		r.read(t)
	}
	return r
}

// finds verifies that the next page has n rows that were not seen before.
func (r *reader) finds(t *testing.T, n int) {
	t.Helper()
	seen := len(r.seen)
	if r.read(t); len(r.seen) != seen+n {
		t.Errorf("what was committed late: a fetch found %d rows, want %d", len(r.seen)-seen, n)
	}
}

// aggregates is how many the producers compete for.
const aggregates = 8

// producer makes all kinds of transactions.
type producer struct{ conn *pgx.Conn }

var errRollBack = errors.New("roll back")

// transact runs one transaction and returns the ids of the events that it committed.
func (p *producer) transact(ctx context.Context) (ids []uuid.UUID, err error) {
	err = pgx.BeginFunc(ctx, p.conn, func(tx pgx.Tx) error {
		if rand.IntN(4) == 0 {
			// Inserts straight away, without having changed anything before.
			ids, err = p.insert(ctx, tx, uuid.NewString(), 1, 1+rand.IntN(3))
			return err
		}
		n := 1 + rand.IntN(4)
		id := 1 + rand.IntN(aggregates)
		var version int
		if err := tx.QueryRow(ctx, `update aggregate set version = version + $2 where id = $1 returning version`, id, n).Scan(&version); err != nil {
			return err
		}
		if rand.IntN(3) == 0 {
			sub, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := p.insert(ctx, sub, "rolled back", 1, 3); err != nil {
				return err
			}
			if err := sub.Rollback(ctx); err != nil {
				return err
			}
		}
		ids, err = p.insert(ctx, tx, strconv.Itoa(id), version-n+1, n)
		if err != nil {
			return err
		}
		// The rest of the transaction takes a while.
		if _, err := tx.Exec(ctx, `select pg_sleep($1)`, rand.Float64()*0.004); err != nil {
			return err
		}
		if rand.IntN(5) == 0 {
			return errRollBack
		}
		return nil
	})
	if errors.Is(err, errRollBack) {
		return nil, nil
	}
	return ids, err
}

// insert adds n events whose type is the version of the aggregate that they tell of.
func (p *producer) insert(ctx context.Context, tx pgx.Tx, aggregate string, version, n int) (ids []uuid.UUID, err error) {
	events := make([]store.Event, n)
	for i := range events {
		events[i] = event(aggregate)
		events[i].ID, events[i].EventType = uuid.New(), strconv.Itoa(version+i)
		ids = append(ids, events[i].ID)
	}
	return ids, store.Insert(ctx, tx, events...)
}

// reader does what the relay does: it keeps what it fetched in hand until some time later.
type reader struct {
	f        *fixture
	held     []int64
	highest  int64
	seen     map[uuid.UUID]int
	versions map[string]int // The last one seen of each aggregate.
}

// read makes one round trip that settles a part of what is in hand.
func (r *reader) read(t *testing.T) {
	t.Helper()
	rand.Shuffle(len(r.held), func(i, j int) { r.held[i], r.held[j] = r.held[j], r.held[i] })
	n := len(r.held)
	if rand.IntN(4) == 0 {
		n /= 2
	}
	settled := slices.Clone(r.held[:n])
	r.held = slices.Delete(r.held, 0, n)

	response := r.f.roundTrip(t, store.Request{Settled: settledSeqs(settled), Fetch: &store.Fetch{Rows: 50, Bytes: 1 << 20, Held: r.held, Highest: r.highest}})
	if got := seqs(response.Rows); !slices.IsSorted(got) {
		t.Errorf("page %v is not in seq order", got)
	}
	for _, row := range response.Rows {
		if r.seen[row.ID]++; r.seen[row.ID] > 1 {
			t.Errorf("seq %d was seen again", row.Seq)
		}
		version, err := strconv.Atoi(row.EventType)
		if err == nil && version != r.versions[row.AggregateID]+1 {
			t.Errorf("seq %d tells of version %d of aggregate %s after version %d", row.Seq, version, row.AggregateID, r.versions[row.AggregateID])
		}
		r.versions[row.AggregateID] = version
		r.held = append(r.held, row.Seq)
		r.highest = max(r.highest, row.Seq)
	}
}
