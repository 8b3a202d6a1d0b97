package main

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// deadID is the event id of the letter with seq 2 in graveyard.
const deadID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

// graveyard is a migrated database with three dead letters, one of them awkward.
func graveyard(t *testing.T) (dsn string, env environment) {
	t.Helper()
	dsn = storetest.NewDatabase(t)
	env = environment{"OUTBOX_DATABASE_DSN": dsn}
	expectCode(t, execute(t, env, "migrate"), 0)
	sql(t, dsn, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at, attempts, last_error, died_at) values
    (1, gen_random_uuid(), 'users',  'User',  '17',             'UserCreated', '{"name": "<Ada>"}', '{"tenant": "a&b"}', '2026-01-02 03:04:05.678Z', 3, 'too large',      '2026-01-02 03:05:00Z'),
    (2, $1,                'users',  'User',  E'a\n\x1b[2J\tb', 'UserCreated', '\x00ff',            null,                '2026-01-02 03:04:06Z',     3, E'first\nsecond', '2026-01-02 03:05:00Z'),
    (3, gen_random_uuid(), 'orders', 'Order', '',               'OrderPaid',   '',                  null,                '2026-01-02 03:04:07Z',     1, 'headers: bad',   '2026-01-02 03:05:00Z')`, deadID)
	return dsn, env
}

func TestDeadListForPeople(t *testing.T) {
	_, env := graveyard(t)
	got := execute(t, env, "dead", "list")
	expectCode(t, got, 0)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if len(lines) != 4 {
		t.Fatalf("want a headline and 3 lines, got:\n%s", got.stdout)
	}
	expectText(t, "the headline", lines[0], "SEQ  ID", "AGGREGATE ID", "LAST ERROR")
	expectText(t, "the first line", lines[1], "1    ", "users", "17", "UserCreated", "3", "2026-01-02T03:05:00Z", "too large")
	expectText(t, "the second line", lines[2], "2    "+deadID, `"a\n\x1b[2J\tb"`, `"first\nsecond"`)
	column := strings.Index(lines[0], "AGGREGATE ID")
	for i, want := range []string{"17 ", `"a\n`, `"" `} {
		if got := lines[i+1][column:]; !strings.HasPrefix(got, want) {
			t.Errorf("line %d has %q in the column AGGREGATE ID, want %q", i+1, got, want)
		}
	}
}

func TestDeadListForPrograms(t *testing.T) {
	_, env := graveyard(t)
	for args, want := range map[string][]int64{
		"":                                     {1, 2, 3},
		"--topic users":                        {1, 2},
		"--aggregate-type Order":               {3},
		"--aggregate-id 17":                    {1},
		"--topic users --aggregate-type Order": {},
		"--event-type OrderPaid":               {3},
		"--error TOO":                          {1},
		"--error 100%":                         {},
		"--older-than 1h":                      {1, 2, 3},
		"--older-than 1000000h":                {},
		"--event-type UserCreated --error second": {2},
		"--limit 2":           {1, 2},
		"--after 1":           {2, 3},
		"--after 1 --limit 1": {2},
		"--after 3":           {},
	} {
		got := execute(t, env, append([]string{"dead", "list", "--json"}, strings.Fields(args)...)...)
		expectCode(t, got, 0)
		var letters []letter
		if err := json.Unmarshal([]byte(got.stdout), &letters); err != nil || letters == nil {
			t.Errorf("dead list --json %s: %v, want an array:\n%s", args, err, got.stdout)
		}
		seqs := []int64{}
		for _, l := range letters {
			seqs = append(seqs, l.Seq)
		}
		if !slices.Equal(seqs, want) {
			t.Errorf("dead list --json %s = %v, want %v", args, seqs, want)
		}
	}
	if got := execute(t, env, "dead", "list", "--json", "--topic", "none").stdout; got != "[]\n" {
		t.Errorf("dead list --json of nothing = %q, want []", got)
	}
	if got := execute(t, env, "dead", "list", "--topic", "none").stdout; got != "no dead letters\n" {
		t.Errorf("dead list of nothing = %q", got)
	}
}

// The fields are relied on: this test is to be added to, not changed.
func TestDeadJSONIsStable(t *testing.T) {
	_, env := graveyard(t)
	const tail = `"topic":"users","aggregate_type":"User","aggregate_id":"a\n\u001b[2J\tb","event_type":"UserCreated","headers":null,` +
		`"created_at":"2026-01-02T03:04:06Z","attempts":3,"last_error":"first\nsecond","died_at":"2026-01-02T03:05:00Z","letter":2,"data_bytes":2`
	list := execute(t, env, "dead", "list", "--json", "--after", "1", "--limit", "1").stdout
	if want := `[` + "\n" + `{"seq":2,"id":"` + deadID + `",` + tail + `}` + "\n]\n"; list != want {
		t.Errorf("dead list --json =\n%s\nwant\n%s", list, want)
	}
	show := execute(t, env, "dead", "show", "--json", deadID).stdout
	if want := `{"seq":2,"id":"` + deadID + `",` + tail + `,"data":"AP8=","text":null}` + "\n"; show != want {
		t.Errorf("dead show --json =\n%s\nwant\n%s", show, want)
	}

	var first struct {
		Headers map[string]string `json:"headers"`
		Data    string            `json:"data"`
		Text    *string           `json:"text"`
	}
	got := execute(t, env, "dead", "show", "--json", "1")
	if err := json.Unmarshal([]byte(got.stdout), &first); err != nil {
		t.Fatal(err)
	}
	data, err := base64.StdEncoding.DecodeString(first.Data)
	if want := `{"name": "<Ada>"}`; err != nil || string(data) != want || first.Text == nil || *first.Text != want || first.Headers["tenant"] != "a&b" {
		t.Errorf("dead show --json 1 = %s (%v), want the payload and headers", got.stdout, err)
	}
	expectText(t, "dead show --json 3", execute(t, env, "dead", "show", "--json", "3").stdout, `"data":"","text":""`)
}

func TestDeadShowForPeople(t *testing.T) {
	_, env := graveyard(t)
	text := execute(t, env, "dead", "show", "1")
	expectCode(t, text, 0)
	expectText(t, "dead show 1", text.stdout, "seq             1\n", "aggregate id    17\n", `headers         {"tenant": "a&b"}`+"\n",
		"created at      2026-01-02T03:04:05.678Z\n", "last error      too large\n", "\ndata, 17 bytes:\n{\"name\": \"<Ada>\"}\n")
	binary := execute(t, env, "dead", "show", deadID)
	expectText(t, "dead show by id", binary.stdout, "seq             2\n", `aggregate id    "a\n\x1b[2J\tb"`+"\n", "headers         none\n",
		"data, 2 bytes, in hexadecimal:\n00000000  00 ff")
	if strings.Contains(binary.stdout, "\x1b") {
		t.Errorf("dead show lets control characters through: %q", binary.stdout)
	}

	for _, key := range []string{"4", "00000000-0000-0000-0000-000000000001"} {
		missing := execute(t, env, "dead", "show", key)
		expectCode(t, missing, 1)
		expectText(t, "standard error", missing.stderr, "outbox-relay: ", "no such dead letter", key)
	}
}

func TestDeadRequeue(t *testing.T) {
	dsn, env := graveyard(t)
	waiting := func() int { return number(t, dsn, `select count(*) from outbox`) }

	got := execute(t, env, "dead", "requeue", "1", "9")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "no such dead letter: seq 9")
	if n := waiting(); n != 0 {
		t.Errorf("%d were requeued though one KEY was wrong, want none", n)
	}

	got = execute(t, env, "dead", "requeue", "1", deadID, "1")
	expectCode(t, got, 0)
	if got.stdout != "requeued 2 dead letters\n" || waiting() != 2 {
		t.Errorf("dead requeue prints %q with %d waiting, want 2", got.stdout, waiting())
	}
	// What is done is on record.
	expectText(t, "standard error", got.stderr, "dead letters taken away", "how=requeued", "letters=2", "by=", "seq 1", "id "+deadID)
	for _, header := range []string{"Nats-Msg-Id=1", "tenant"} {
		if got := execute(t, env, "dead", "requeue", "3", "--set-header", header); got.code == 0 || waiting() != 2 {
			t.Errorf("requeue with the header %q: code %d with %d waiting", header, got.code, waiting())
		}
	}
	got = execute(t, env, "dead", "requeue", "--all", "--topic", "orders", "--json", "--limit", "5", "--set-header", "tenant=b", "--set-header", "try=2")
	expectCode(t, got, 0)
	if got.stdout != `{"requeued":1}`+"\n" || waiting() != 3 {
		t.Errorf("dead requeue --all prints %q with %d waiting, want 3", got.stdout, waiting())
	}
	if n := number(t, dsn, `select count(*) from outbox where seq = 3 and headers = '{"tenant": "b", "try": "2"}' or seq = 1 and headers = '{"tenant": "a&b"}'`); n != 2 {
		t.Errorf("%d rows have the headers that they should have, want 2", n)
	}
	got = execute(t, env, "dead", "requeue", "--all")
	expectCode(t, got, 0)
	if got.stdout != "requeued 0 dead letters\n" {
		t.Errorf("dead requeue --all of nothing prints %q", got.stdout)
	}
}

func TestDeadDiscard(t *testing.T) {
	dsn, env := graveyard(t)
	left := func() int { return number(t, dsn, `select count(*) from outbox_dead`) }

	expectCode(t, execute(t, env, "dead", "discard", "--all"), 2)
	if n := left(); n != 3 {
		t.Fatalf("%d dead letters are left though --yes was not given, want 3", n)
	}
	got := execute(t, env, "dead", "discard", deadID)
	expectCode(t, got, 0)
	if got.stdout != "discarded 1 dead letter\n" || left() != 2 {
		t.Errorf("dead discard prints %q with %d left, want 2", got.stdout, left())
	}
	got = execute(t, env, "dead", "discard", "--all", "--yes", "--json")
	expectCode(t, got, 0)
	if got.stdout != `{"discarded":2}`+"\n" || left() != 0 || number(t, dsn, `select count(*) from outbox`) != 0 {
		t.Errorf("dead discard --all prints %q with %d left, want none", got.stdout, left())
	}
}

func TestManyDeadLetters(t *testing.T) {
	const many = 2*pageSize + 1
	dsn, env := graveyard(t)
	sql(t, dsn, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
select n, gen_random_uuid(), 'users', 'User', n::text, 'UserCreated', '', clock_timestamp(), 3, 'refused' from generate_series(4, $1::bigint) as n`, many)

	var letters []letter
	if err := json.Unmarshal([]byte(execute(t, env, "dead", "list", "--json").stdout), &letters); err != nil || len(letters) != many {
		t.Errorf("dead list --json has %d letters (%v), want %d", len(letters), err, many)
	}
	if err := json.Unmarshal([]byte(execute(t, env, "dead", "list", "--json", "--limit", strconv.Itoa(pageSize+1)).stdout), &letters); err != nil || len(letters) != pageSize+1 {
		t.Errorf("dead list --json --limit has %d letters (%v), want %d", len(letters), err, pageSize+1)
	}
	if got, want := strings.Count(execute(t, env, "dead", "list").stdout, "\n"), many+1; got != want {
		t.Errorf("dead list has %d lines, want %d", got, want)
	}
	got := execute(t, env, "dead", "requeue", "--all")
	if want := "requeued " + strconv.Itoa(many) + " dead letters\n"; got.stdout != want {
		t.Errorf("dead requeue --all prints %q, want %q", got.stdout, want)
	}
}

// A letter that a person has requeued is published by the relay that is running.
func TestARequeuedLetterIsPublished(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	const limit = 4096
	nats := streamtest.Start(t, streamtest.MaxPayload(limit))
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": nats.URL(), "OUTBOX_MAX_ATTEMPTS": "1", "OUTBOX_POLL_INTERVAL": "1m"}
	relay := start(t, env)
	relay.logged("leading")
	insert(t, dsn, "files", "File", "1", "FileAdded", strings.Repeat("x", limit+1))
	relay.logged("event given up; see `outbox-relay dead`")
	list := environment{"OUTBOX_DATABASE_DSN": dsn}
	eventually(t, "the dead letter", func() bool {
		return strings.Contains(execute(t, list, "dead", "list").stdout, "payload of 4097 bytes")
	})
	insert(t, dsn, "files", "File", "2", "FileAdded", "small")
	if got := next(t, nats.JetStream(t), "OUTBOX").Subject(); got != "outbox.files.File.2" {
		t.Errorf("the first message is %s, want the one that is not too large", got)
	}

	sql(t, dsn, `update outbox_dead set data = 'cut'`)
	expectCode(t, execute(t, list, "dead", "requeue", "--all"), 0)
	eventually(t, "the requeued event", func() bool { return len(nats.Messages(t, "OUTBOX")) == 2 })
}

func TestDeadNeedsOnlyTheDatabase(t *testing.T) {
	_, env := graveyard(t)
	env["OUTBOX_NATS_CREDS"] = "/run/secrets/of/another/container"
	expectCode(t, execute(t, env, "dead", "list"), 0)
	expectCode(t, execute(t, env, "migrate"), 0)
	got := execute(t, env)
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_NATS_CREDS")

	got = execute(t, nil, "dead", "list")
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_DATABASE_DSN: not set")

	got = execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere}, "dead", "list")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "outbox-relay: list dead letters: cannot reach Postgres: ")
}

// Two dead letters of one seq, one that stayed in the outbox, one with a foreign seq: each can be named, and those that
// are not meant are left alone.
func TestDeadKeys(t *testing.T) {
	dsn, env := graveyard(t)
	sql(t, dsn, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error) values
    (1, gen_random_uuid(), 'users', 'User', 'twin', 'UserCreated', '', now(), 1, 'refused'), (-7, gen_random_uuid(), 'users', 'User', 'negative', 'UserCreated', '', now(), 1, 'refused')`)
	sql(t, dsn, `
insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data, last_error, attempts, given_up_at) overriding system value
    values (9, 'users', 'User', 'stays', 'UserCreated', 'x', 'index row size', 3, now())`)

	list := execute(t, env, "dead", "list")
	expectCode(t, list, 0)
	lines := strings.Split(strings.TrimSpace(list.stdout), "\n")
	if len(lines) != 7 || !strings.HasPrefix(lines[1], "-7 ") || !strings.HasPrefix(lines[6], "9 ") || !strings.Contains(lines[6], "in outbox") || !strings.Contains(lines[6], "index row size") {
		t.Errorf("dead list =\n%s", list.stdout)
	}
	expectText(t, "status", execute(t, env, "status").stdout, "pending       0\n", "dead letters  6\n")
	json := execute(t, env, "dead", "list", "--json").stdout
	expectText(t, "dead list --json", json, `"letter":null`, `"letter":4`)

	for key, want := range map[string]string{"letter:4": "twin", "seq:-7": "negative", "9": "stays", "seq:9": "stays", "outbox:9": "stays"} {
		got := execute(t, env, "dead", "show", key)
		expectCode(t, got, 0)
		expectText(t, "dead show "+key, got.stdout, "aggregate id    "+want+"\n")
	}
	expectText(t, "dead show 9", execute(t, env, "dead", "show", "9").stdout, "letter          none: it is kept in the outbox")
	for _, command := range []string{"show", "requeue", "discard"} {
		got := execute(t, env, "dead", command, "1")
		expectCode(t, got, 1)
		expectText(t, "dead "+command+" 1", got.stderr, "seq 1 names several dead letters: letter:1, letter:4")
	}
	for _, key := range []string{"letter:0", "letter:x", "seq:", "x"} {
		expectCode(t, execute(t, env, "dead", "show", key), 2)
	}
	got := execute(t, env, "dead", "discard", "letter:4", "9", "seq:-7")
	expectCode(t, got, 0)
	if got.stdout != "discarded 3 dead letters\n" || number(t, dsn, `select count(*) from outbox_dead`) != 3 || number(t, dsn, `select count(*) from outbox`) != 0 {
		t.Errorf("dead discard prints %q", got.stdout)
	}
}

// What the broker would not take is left, and the rest is requeued.
func TestDeadRequeueOfTooLargeEvents(t *testing.T) {
	dsn, env := graveyard(t)
	sql(t, dsn, `insert into outbox_relay (stream, term, leader, leader_since, max_payload) values ('OUTBOX', 1, 'me', now(), 16)`)
	got := execute(t, env, "dead", "requeue", "1")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "17 bytes", "at most 16", "--force")
	got = execute(t, env, "dead", "requeue", "--all")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "requeued 2 dead letters, then failed", "letter:1 has a payload of 17 bytes")
	if n := number(t, dsn, `select count(*) from outbox`); n != 2 {
		t.Errorf("%d were requeued, want 2", n)
	}
	got = execute(t, env, "dead", "requeue", "--force", "1")
	expectCode(t, got, 0)
	if n := number(t, dsn, `select count(*) from outbox`); n != 3 {
		t.Errorf("%d were requeued, want 3", n)
	}
}

// No content of a row makes the others invisible, or JSON none.
func TestDeadListOfAnyContent(t *testing.T) {
	dsn, env := graveyard(t)
	sql(t, dsn, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at, attempts, last_error, died_at) values
    (5, gen_random_uuid(), repeat('t', 300000), 'User', '1', 'e', decode(repeat('41', 1000000), 'hex'), '{"a": [1, {"b": null}]}', 'infinity', -2147483648, repeat('z', 5000), '4713-01-01 BC'),
    (6, gen_random_uuid(), 't', 'User', '1', 'e', '', to_jsonb(repeat('h', 1000000)), '294276-12-31', 2147483647, '', now())`)
	var letters []letter
	got := execute(t, env, "dead", "list", "--json")
	if err := json.Unmarshal([]byte(got.stdout), &letters); err != nil || len(letters) != 5 {
		t.Fatalf("%d letters, %v", len(letters), err)
	}
	if l := letters[3]; !slices.Equal(l.Cut, []string{"topic", "last_error"}) || len(l.Topic) != 2000 || l.DataBytes != 1_000_000 || l.CreatedAt.Infinite != 1 {
		t.Errorf("got %+v", l.Cut)
	}
	if l := letters[4]; !slices.Equal(l.Cut, []string{"headers"}) || string(l.Headers) != "null" {
		t.Errorf("got %+v", l.Cut)
	}
	text := execute(t, env, "dead", "list")
	expectCode(t, text, 0)
	for line := range strings.Lines(text.stdout) {
		if len(line) > 600 {
			t.Errorf("a line has %d bytes", len(line))
		}
	}
	text = execute(t, env, "dead", "show", "5")
	expectCode(t, text, 0)
	expectText(t, "dead show 5", text.stdout, "created at      infinity\n", "died at         4713-01-01T00:00:00Z BC\n", "data, 1000000 bytes:\nAAAA", "… and 934464 bytes more\n")
	expectText(t, "dead show 6", execute(t, env, "dead", "show", "6").stdout, "headers         ")
	var full detail
	if err := json.Unmarshal([]byte(execute(t, env, "dead", "show", "--json", "5").stdout), &full); err != nil || len(full.Data) != 1_000_000 || len(full.Topic) != 300_000 || full.Text == nil {
		t.Errorf("dead show --json 5: %v, %d bytes", err, len(full.Data))
	}
}

// A relay removes dead letters that have been kept long enough, and no others; not where they hold their aggregates.
func TestDeadRetain(t *testing.T) {
	dsn, env := graveyard(t)
	sql(t, dsn, `update outbox_dead set died_at = now() where seq = 2`)
	env["OUTBOX_NATS_URL"], env["OUTBOX_DEAD_RETAIN"] = streamtest.Start(t).URL(), "1h"
	relay := start(t, env)
	if line := relay.logged("removed dead letters that were kept long enough"); line["letters"] != 2.0 {
		t.Errorf("the log says %v", line)
	}
	if n := number(t, dsn, `select min(seq) from outbox_dead having count(*) = 1`); n != 2 {
		t.Errorf("the dead letter that is left is %d, want 2", n)
	}
	env["OUTBOX_ON_DEAD"] = "hold"
	got := execute(t, env)
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_DEAD_RETAIN", "exclude each other", "OUTBOX_ON_DEAD")
}
