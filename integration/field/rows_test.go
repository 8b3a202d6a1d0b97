package field_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/go-outbox/go-outbox/integration/harness"
)

//nolint:gochecknoglobals // A flag.
var oneRow = flag.String("field.row", "", "the row that TestOneRow writes, such as 'seq=negative headers=scalar'; rows are separated by commas")

// rowsCase is hostile rows that are in the outbox together.
type rowsCase struct {
	name   string
	first  string // A row that has become a dead letter before the others are written.
	rows   string // Separated by commas; see harness.HostileRow.
	copies int    // Of each row; 0 for one.
	gone   bool   // The rows are removed in the transaction after that which wrote them.
	nulls  bool   // Columns of the running relay's table become nullable.
	queued bool   // The rows are of one aggregate, so most of them are in the outbox for long.
	warned bool   // The log has to name each of the rows, also if it is stored.
	lines  int    // How many lines of the log may be about rows that were given up; 0 for any number.
	exempt string // An honest aggregate which the rows are of.
	long   bool
}

func ordinaryRows() []rowsCase {
	return []rowsCase{
		{name: "seq zero", rows: "seq=zero"},
		{name: "seq zero, refused", rows: "seq=zero headers=msg-id"},
		{name: "seq negative", rows: "seq=negative, seq=least", copies: 3},
		{name: "seq negative, refused", rows: "seq=negative headers=msg-id", copies: 3},
		{name: "seq greatest", rows: "seq=greatest", copies: 2},
		{name: "seq greatest, refused", rows: "seq=greatest headers=msg-id", copies: 2},
		{name: "seq 9e18, published", rows: "seq=9e18"},
		{name: "seq 9e18, removed", rows: "seq=9e18", copies: 5, gone: true},
		{name: "seq ahead", rows: "seq=ahead", copies: 50},
		{name: "seq low", rows: "seq=low", copies: 10},
		{name: "seq of a dead letter", first: "headers=msg-id", rows: "seq=dead headers=msg-id"},
		{name: "seq of a dead letter, published", first: "headers=msg-id", rows: "seq=dead"},
		{name: "seq of a published row", rows: "seq=published"},
		{name: "id nil", rows: "id=nil", copies: 2},
		{name: "id greatest", rows: "id=greatest"},
		{name: "id in two rows", rows: "id=same", copies: 2, warned: true},
		{name: "id of a published event", rows: "id=published", warned: true},
		{name: "attempts", rows: "attempts=least, attempts=negative, attempts=greatest", copies: 3},
		{name: "attempts, refused", rows: "attempts=least headers=msg-id, attempts=negative headers=msg-id, attempts=greatest headers=msg-id", copies: 3},
		{name: "attempts, refused, thousand", rows: "attempts=greatest headers=msg-id", copies: 1100},
		{name: "retry_at", rows: "retry_at=minus-infinity, retry_at=4714BC, retry_at=1900, retry_at=year-0"},
		{name: "retry_at infinite", rows: "retry_at=infinity"},
		{name: "retry_at far", rows: "retry_at=294276, retry_at=in-100-years, retry_at=year-10000"},
		{name: "retry_at of an honest aggregate", rows: "retry_at=infinity aggregate_type=honest aggregate_id=honest, retry_at=in-100-years aggregate_type=honest aggregate_id=honest", exempt: "a1"},
		{name: "retry_at, thousands", rows: "retry_at=in-100-years", copies: 20_000},
		{name: "created_at", rows: "created_at=4714BC, created_at=1900, created_at=year-0, created_at=year-10000, created_at=294276, created_at=in-100-years"},
		{name: "created_at infinite", rows: "created_at=infinity, created_at=minus-infinity"},
		{name: "created_at, refused", rows: "created_at=infinity headers=msg-id, created_at=minus-infinity headers=msg-id, created_at=294276 headers=msg-id, created_at=4714BC headers=msg-id"},
		{name: "texts empty", rows: "topic=empty, aggregate_type=empty, aggregate_id=empty, event_type=empty"},
		{name: "null", rows: "id=null, topic=null, aggregate_type=null, aggregate_id=null, event_type=null, data=null, attempts=null, created_at=null", nulls: true},
		{name: "texts odd", rows: "topic=control, aggregate_type=control, aggregate_id=control, event_type=control, topic=wildcard, aggregate_id=wildcard, topic=blank, aggregate_id=blank, event_type=blank"},
		{name: "texts of 3 KB", rows: "topic=3KB, aggregate_type=3KB, aggregate_id=3KB, event_type=3KB, aggregate_id=3KB headers=msg-id"},
		{name: "topic of 70 KB", rows: "topic=70KB, topic=1MB-compressible"},
		{name: "aggregate type of 70 KB", rows: "aggregate_type=70KB, aggregate_type=1MB-compressible"},
		{name: "aggregate id of 70 KB", rows: "aggregate_id=70KB, aggregate_id=1MB-compressible"},
		{name: "event type of 70 KB", rows: "event_type=70KB, event_type=1MB-compressible"},
		{name: "aggregate id of 70 KB, hundreds", rows: "aggregate_id=70KB", copies: 300},
		{name: "headers of another shape", rows: "headers=array, headers=scalar, headers=number, headers=json-null, headers=empty, headers=nested, headers=nested-array, headers=null-value, headers=null-in-array, headers=empty-array, headers=numbers, headers=deep"},
		{name: "headers that NATS refuses", rows: "headers=empty-name, headers=slash, headers=space, headers=accent, headers=colon, headers=break, headers=break-in-value, headers=two-cases, headers=hiding, headers=surrogate"},
		{name: "headers that are reserved", rows: "headers=msg-id, headers=rollup, headers=lower-case, headers=ttl, headers=expected, headers=term, headers=seq, headers=status, headers=status data=empty"},
		{name: "headers of a server's answer", rows: "headers=status, headers=status-100, headers=status-409"},
		{name: "headers long", rows: "headers=64KB, headers=65KB, headers=1MB, headers=70KB-name, headers=many, headers=many-bad"},
		{name: "headers reserved, thousand", rows: "headers=msg-id", copies: 1000},
		{name: "headers reserved, thousand, of one aggregate", rows: "headers=msg-id aggregate_id=one", copies: 1000, queued: true},
		{name: "headers refused, of an honest aggregate", rows: "headers=msg-id aggregate_type=honest aggregate_id=honest, headers=slash aggregate_type=honest aggregate_id=honest", exempt: "a1"},
		{name: "payload empty", rows: "data=empty"},
		{name: "payload of more than max_payload", rows: "data=1MiB, data=2MiB"},
		{name: "payload of more than max_payload, of an honest aggregate", rows: "data=2MiB aggregate_type=honest aggregate_id=honest", exempt: "a1"},
		{name: "payload of more than max_payload, sixty", rows: "data=2MiB", copies: 60, lines: 30},
		{name: "last_error", rows: "last_error=1MiB, last_error=control, last_error=1MiB headers=msg-id, last_error=control headers=msg-id"},
		{name: "thousands refused", rows: "headers=slash", copies: 5_000},
		{name: "mixed", copies: 20, rows: "seq=negative, headers=msg-id, headers=array, attempts=greatest headers=msg-id, retry_at=infinity, created_at=infinity, topic=empty, id=nil, aggregate_id=70KB, data=1MiB"},
	}
}

func largeRows() []rowsCase {
	return []rowsCase{
		{name: "payload of 60 MB", rows: "data=60MB"},
		{name: "payload of 300 MB", rows: "data=300MB-compressible"},
		{name: "payload of 900 MB", rows: "data=900MB-compressible", long: true},
		{name: "topic of 200 MB", rows: "topic=200MB-compressible"},
		{name: "aggregate type of 200 MB", rows: "aggregate_type=200MB-compressible", long: true},
		{name: "aggregate id of 200 MB", rows: "aggregate_id=200MB-compressible"},
		{name: "event type of 200 MB", rows: "event_type=200MB-compressible", long: true},
		{name: "headers of 20 MB", rows: "headers=20MB"},
		{name: "headers of 20 MB, thirty", rows: "headers=20MB", copies: 30, long: true},
		{name: "last_error of 50 MB", rows: "last_error=50MB-compressible, last_error=50MB-compressible headers=msg-id"},
		{name: "texts of 1 MB, thousand", rows: "topic=1MB-compressible", copies: 1000},
		{name: "aggregate id of 70 KB, thousand", rows: "aggregate_id=70KB", copies: 1200, long: true},
		{name: "refused, 300,000", rows: "headers=slash", copies: 300_000, long: true},
		{name: "retry_at, 200,000", rows: "retry_at=in-100-years", copies: 200_000, long: true},
	}
}

// Whatever is in the outbox, other events flow, the relay lives, and its operator can read everything.
func TestRows(t *testing.T) {
	t.Parallel()
	for _, c := range ordinaryRows() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

// Not parallel: such rows would slow Postgres for other tests.
func TestLargeRows(t *testing.T) {
	for _, c := range largeRows() {
		t.Run(c.name, func(t *testing.T) {
			if c.long {
				onlyLong(t)
			}
			c.run(t)
		})
	}
}

// TestOneRow is for looking into a failure of one of the others.
func TestOneRow(t *testing.T) {
	t.Parallel()
	if *oneRow == "" {
		t.Skip("only with -field.row")
	}
	rowsCase{rows: *oneRow, name: *oneRow}.run(t)
}

func (c rowsCase) run(t *testing.T) {
	t.Helper()
	s := newScene(t)
	s.exempt = c.exempt
	rows := parse(t, c.rows)
	if !c.nulls {
		s.probe(t, rows)
	}
	s.start()
	if c.nulls {
		s.WithNulls(s.conn)
	}
	if c.first != "" {
		s.giveUp(t, parse(t, c.first)[0])
		s.mark()
	}
	s.judge(c, rows)
	s.verdict()
}

func parse(t *testing.T, text string) (rows []harness.HostileRow) {
	t.Helper()
	for one := range strings.SplitSeq(text, ",") {
		row, err := harness.ParseHostileRow(strings.TrimSpace(one))
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	return rows
}

// probe removes the table's checks if they refuse one of the rows: such a row may be older than the checks, or the owner may
// have removed them. The refusal must say why. Large rows, and rows that need others first, are not tried.
func (s *scene) probe(t *testing.T, rows []harness.HostileRow) {
	t.Helper()
	refused := false
	for _, row := range rows {
		if row.Large() || row.Has("seq", "dead") || row.Has("seq", "published") || row.Has("id", "published") {
			continue
		}
		err := rolledBack(t.Context(), s.conn, func() error {
			_, err := row.Write(t.Context(), s.conn, 1, 1)
			return err
		})
		if err == nil {
			continue
		}
		if !inClearWords(err) {
			t.Errorf("%v: it is refused, but not in clear words: %v", row, err)
		}
		s.seen = append(s.seen, fmt.Sprintf("%v is refused: %s", row, shortened(err.Error())))
		refused = true
	}
	if refused {
		s.WithoutChecks(s.conn)
	}
}

// inClearWords reports whether an error of Postgres says what is wrong with a row: a violated check, a value out of range, a
// privilege.
func inClearWords(err error) bool {
	var refusal *pgconn.PgError
	if !errors.As(err, &refusal) {
		return false
	}
	switch refusal.Code[:2] {
	case "22", "23", "42", "54":
		return true
	}
	return false
}

// giveUp writes a row and waits until it is a dead letter.
func (s *scene) giveUp(t *testing.T, row harness.HostileRow) {
	t.Helper()
	if _, err := row.Write(t.Context(), s.conn, 1000, 1); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "a dead letter", func() bool {
		letters, err := s.letters()
		return err == nil && len(letters) > 0
	})
}

// Times of judge.
const (
	watched    = 3 * time.Second  // What others feel is looked at for so long, at least.
	fateWithin = 12 * time.Second // A hostile row has met its fate.
)

// judge writes rows into a running world, and looks for what must not happen.
func (s *scene) judge(c rowsCase, rows []harness.HostileRow) {
	s.Helper()
	began := s.began
	written, err := s.write(rows, 1, cmp.Or(c.copies, 1), c.gone)
	if err != nil {
		s.problem("%v", err)
	}
	s.began = time.Now() // What writing costs Postgres is not the relay's doing.
	harness.Pause(s.Context(), watched)
	s.fate(c, written)
	s.check("beside the rows")
	s.checkLog(began)
	s.checkCommands()
	s.showLetters()
	if lines := s.relay.Count(regexp.MustCompile(`given up`)); c.lines > 0 && lines > c.lines {
		s.problem("%d lines of the log are about rows that were given up", lines)
	}

	if !c.nulls {
		s.takeover(func() {
			again, err := s.write(rows, nextNumber, cmp.Or(c.copies, 1), c.gone)
			if err != nil {
				s.problem("%v", err)
			}
			written = again // Of the others it has been said where they are; this relay's log does not say it again.
		})
		harness.Pause(s.Context(), watched/2)
		s.fate(c, written)
		s.check("at the next relay")
		s.checkCommands()
	}
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
}

// showLetters shows some dead letters whole, one of them as programs read it.
func (s *scene) showLetters() {
	s.Helper()
	letters, err := s.letters()
	if err != nil || len(letters) == 0 {
		return // An error is a problem already.
	}
	for i, l := range []letter{letters[0], letters[len(letters)-1]} {
		args := []string{"dead", "show", "letter:" + strconv.FormatInt(l.Letter, 10)}
		if l.Letter == 0 {
			args[2] = "outbox:" + strconv.FormatInt(l.Seq, 10)
		}
		if i == 1 {
			args = append(args, "--json")
		}
		result := s.Try(20*time.Second, s.settings, args...)
		switch {
		case result.Code != 0:
			s.problem("%s: exit code %d: %s", strings.Join(args, " "), result.Code, shortened(result.Stderr))
		case i == 1 && !json.Valid([]byte(result.Stdout)):
			s.problem("%s: no JSON: %s", strings.Join(args, " "), shortened(result.Stdout))
		case !strings.Contains(result.Stdout, l.ID):
			s.problem("%s: no id: %s", strings.Join(args, " "), shortened(result.Stdout))
		case strings.ContainsAny(result.Stdout, "\x1b\x7f"):
			s.problem("%s: control characters: %q", strings.Join(args, " "), shortened(result.Stdout))
		}
	}
}

// nextNumber is the number of the first row that is written when no relay runs.
const nextNumber = 5000

// fate waits until each of the rows is stored, or a dead letter, or named in the log.
func (s *scene) fate(c rowsCase, written []harness.WrittenRow) {
	s.Helper()
	var lost []harness.WrittenRow
	for deadline := time.Now().Add(fateWithin); !c.gone && !c.queued; harness.Pause(s.Context(), 200*time.Millisecond) {
		var err error
		if lost, err = s.nowhere(written); err == nil && len(lost) == 0 || time.Now().After(deadline) || !s.relay.Alive() {
			break
		}
	}
	if len(lost) > 0 {
		s.problem("%d of %d rows are neither stored nor dead letters, and the log does not name them, such as %v", len(lost), len(written), lost[0])
	}
	for _, row := range written {
		if n := s.traffic.Stored(row.ID); n > 1 && row.ID != "" {
			s.problem("row %v is stored %d times", row, n)
			break
		}
	}
	if last := len(written) - 1; c.warned && last >= 0 && s.relay.Count(named(written[last])) == 0 {
		s.problem("the log does not name %v", written[last])
	}
}

// write inserts the rows, numbered from first on. Rows that are to be gone are deleted at once.
func (s *scene) write(rows []harness.HostileRow, first, copies int, gone bool) (written []harness.WrittenRow, err error) {
	s.Helper()
	ctx := s.Context()
	for i, row := range rows {
		some, err := row.Write(ctx, s.conn, first+i, copies)
		if err != nil && !inClearWords(err) {
			return written, fmt.Errorf("write %v: %w", row, err)
		}
		if err != nil {
			s.seen = append(s.seen, fmt.Sprintf("%v is refused: %s", row, shortened(err.Error())))
		}
		written = append(written, some...)
	}
	if gone {
		batch := &pgx.Batch{}
		for _, row := range written {
			batch.Queue(`delete from outbox where seq = $1`, row.Seq)
		}
		return written, s.conn.SendBatch(ctx, batch).Close()
	}
	return written, nil
}

// Two rows have one id, and the window of the stream is over when the next relay begins. It stores the second one neither
// again nor late, and does not say that the broker has lost something.
func TestIDInTwoRowsPastTheWindow(t *testing.T) {
	t.Parallel()
	s := newScene(t, "OUTBOX_DUPLICATE_WINDOW=2s")
	s.start()
	const id = "5a5a5a5a-0000-4000-8000-5a5a5a5a5a5a"
	s.Exec(s.conn, `
insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data)
select '`+id+`', 'hostile', 'Hostile', 'h' || i, 'E', 'x' from generate_series(1, 2) i`)
	if !s.relay.Await(fateWithin, regexp.MustCompile(`WRN.*`+id)) {
		s.problem("the log does not name the id")
	}
	harness.Pause(t.Context(), 3*time.Second) // The window.
	s.takeover(func() {})
	harness.Pause(t.Context(), 2*time.Second)
	if n := s.traffic.Stored(id); n != 1 {
		s.problem("the id is stored %d times", n)
	}
	if s.relay.Said("read back the stream") && !s.relay.Said("lost_by_the_broker_and_published_again=0") {
		s.problem("the log says that the broker has lost something")
	}
	s.check("at the next relay")
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}

// The line to Postgres is slow, and a payload is large. Nobody else waits until it is across.
func TestLargeRowOverASlowLine(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	dsn, err := url.Parse(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	dsn.Host = harness.SlowLine(t, dsn.Host, 0, 10<<20)
	s.use(dsn.String())
	s.start()
	s.Exec(s.conn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'hostile', 'Hostile', 'h' || i, 'E', convert_to(repeat('x', 60000000), 'UTF8') from generate_series(1, 3) i`)
	s.mark()
	harness.Pause(t.Context(), watched)
	if letters, err := s.letters(); err != nil || len(letters) != 3 {
		s.problem("%d dead letters, error %v; want three", len(letters), err)
	}
	s.check("beside the rows")
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}
