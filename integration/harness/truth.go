package harness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Producers raise the versions of aggregates, and insert an event for each new version in the same transaction. So the
// aggregates' rows say what was committed, and the outbox has no part in that.
type Producers struct {
	*World

	// Others is set where something else writes rows of other aggregate types. Of these the audit only sees that none is stored
	// twice.
	Others bool

	load      Load
	stop      context.CancelFunc
	done      sync.WaitGroup
	resting   sync.RWMutex // Held by those who write, and by Rest.
	committed atomic.Int64
}

const (
	aggregates  = 40
	slowPercent = 5
)

// Load says how Producers write.
type Load struct {
	Writers int
	// Rollbacks is how many of a hundred transactions roll back, and Bursts how many write events of all aggregates, several
	// each.
	Rollbacks, Bursts int
	// Pause is how long a writer pauses after each transaction, on average.
	Pause time.Duration
}

// Produce starts writers that go on until Audit is called.
func (w *World) Produce(writers int) *Producers {
	w.Helper()
	return w.ProduceLoad(Load{Writers: writers, Rollbacks: 10})
}

// ProduceLoad is Produce for a certain load.
func (w *World) ProduceLoad(load Load) *Producers {
	w.Helper()
	conn := w.Connect()
	w.Exec(conn, `create table account (id text primary key, version integer not null default 0)`)
	w.Exec(conn, `insert into account select 'a' || i from generate_series(1, $1::int) i`, aggregates)
	pool, err := pgxpool.New(w.Context(), w.DSN+"&pool_max_conns="+strconv.Itoa(load.Writers))
	if err != nil {
		w.Fatal(err)
	}
	ctx, stop := context.WithCancel(w.Context())
	p := &Producers{World: w, load: load, stop: stop}
	for range load.Writers {
		p.done.Go(func() {
			for ctx.Err() == nil {
				// It is not interrupted: a commit that nothing waits for could be done after the audit has begun.
				p.resting.RLock()
				err := p.write(context.WithoutCancel(ctx), pool)
				p.resting.RUnlock()
				if err != nil {
					Pause(ctx, 20*time.Millisecond) // Postgres is away.
				}
				if load.Pause > 0 {
					Pause(ctx, rand.N(2*load.Pause))
				}
			}
		})
	}
	w.Cleanup(func() {
		stop()
		p.done.Wait()
		pool.Close()
	})
	return p
}

func (p *Producers) write(ctx context.Context, pool *pgxpool.Pool) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // After a commit it does nothing.
	if rand.IntN(100) < p.load.Bursts {
		for range burst {
			if _, err := tx.Exec(ctx, everybody); err != nil {
				return err
			}
		}
		return p.conclude(ctx, tx)
	}
	picked := make([]int, 1+rand.IntN(3))
	for i := range picked {
		picked[i] = 1 + rand.IntN(aggregates)
	}
	slices.Sort(picked) // Rows locked in one order cannot deadlock.
	for _, number := range picked {
		id := "a" + strconv.Itoa(number)
		var version int
		if err := tx.QueryRow(ctx, `update account set version = version + 1 where id = $1 returning version`, id).Scan(&version); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('accounts', '`+HonestType+`', $1, 'Changed', $2)`,
			id, []byte(strconv.Itoa(version)))
		if err != nil {
			return err
		}
	}
	if rand.IntN(100) < slowPercent {
		if _, err := tx.Exec(ctx, `select pg_sleep($1)`, rand.Float64()/10); err != nil {
			return err
		}
	}
	return p.conclude(ctx, tx)
}

// everybody gives each account a new version, and inserts the events, burst times, so that the relay has a backlog.
const (
	everybody = `
with locked as (select id from account order by length(id), id for update),
    changed as (update account a set version = version + 1 from locked where a.id = locked.id returning a.id, a.version)
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'accounts', '` + HonestType + `', id, 'Changed', convert_to(version::text, 'UTF8') from changed`
	burst = 5
)

// conclude commits or rolls back.
func (p *Producers) conclude(ctx context.Context, tx pgx.Tx) error {
	if rand.IntN(100) < p.load.Rollbacks {
		return tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	p.committed.Add(1)
	return nil
}

// Wrote waits until the producers have committed so many transactions.
func (p *Producers) Wrote(n int64) {
	p.Helper()
	Eventually(p.TB, time.Minute, fmt.Sprintf("%d transactions", n), func() bool { return p.committed.Load() >= n })
}

// Rest does something while the producers pause.
func (p *Producers) Rest(during func()) {
	p.resting.Lock()
	defer p.resting.Unlock()
	during()
}

// Stop ends the producers' work.
func (p *Producers) Stop() {
	p.stop()
	p.done.Wait()
}

// Audit stops the producers, waits until the outbox is empty and compares what they committed with what the
// stream holds: everything, once, in order, and nothing else.
func (p *Producers) Audit() {
	p.Helper()
	p.Stop()
	conn := p.Connect()
	p.settled(conn, 40*time.Second, `outbox where not $1 or aggregate_type = '`+HonestType+`'`, p.Others)

	rows, err := conn.Query(p.Context(), `select id, version from account`)
	if err != nil {
		p.Fatal(err)
	}
	committed := map[string]int{}
	var id string
	var version, events int
	if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		committed[id] = version
		events += version
		return nil
	}); err != nil {
		p.Fatal(err)
	}

	stored := map[string]int{}
	ids := map[string]bool{}
	faults := 0
	fault := func(format string, args ...any) {
		if faults++; faults <= 10 {
			p.Errorf(format, args...)
		}
	}
	for _, m := range p.Messages() {
		account := m.Header.Get("Outbox-Aggregate-Id")
		version, err := strconv.Atoi(string(m.Data))
		msgID := m.Header.Get("Nats-Msg-Id")
		if ids[msgID] {
			fault("id %s is stored twice", msgID)
		}
		ids[msgID] = true
		if p.Others && m.Header.Get("Outbox-Aggregate-Type") != HonestType {
			continue
		}
		switch {
		case err != nil || m.Subject != "outbox.accounts.Account."+account:
			fault("foreign message %d on %s: %q", m.Sequence, m.Subject, m.Data)
			continue
		case version > committed[account]:
			fault("%s: version %d was never committed", account, version)
		case version <= stored[account]:
			fault("%s: version %d is stored twice or after version %d", account, version, stored[account])
		case version > stored[account]+1:
			fault("%s: versions %d to %d are missing before %d", account, stored[account]+1, version-1, version)
		}
		stored[account] = max(stored[account], version)
	}
	for account, version := range committed {
		if stored[account] < version {
			fault("%s: versions %d to %d are missing at the end", account, stored[account]+1, version)
		}
	}
	if faults > 10 {
		p.Errorf("… and %d more", faults-10)
	}
	p.Logf("%d transactions, %d events", p.committed.Load(), events)
	if events == 0 {
		p.Error("nothing was committed: this test shows nothing")
	}
}

// Settled waits until the outbox is empty.
func (w *World) Settled(conn *pgx.Conn, within time.Duration) {
	w.Helper()
	w.settled(conn, within, `outbox`)
}

func (w *World) settled(conn *pgx.Conn, within time.Duration, rows string, args ...any) {
	w.Helper()
	Eventually(w.TB, within, "the outbox is empty", func() bool {
		var waiting bool
		if err := conn.QueryRow(w.Context(), `select exists (select from `+rows+`)`, args...).Scan(&waiting); err != nil {
			w.Fatal(err)
		}
		return !waiting
	})
}
