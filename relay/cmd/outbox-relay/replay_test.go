package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// publishedID is the event id of seq 2 in library.
const publishedID = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"

// library is a migrated database with three events in the archive: published two hours ago, one hour ago, and now.
func library(t *testing.T) (dsn string, env environment) {
	t.Helper()
	dsn = storetest.NewDatabase(t)
	env = environment{"OUTBOX_DATABASE_DSN": dsn}
	expectCode(t, execute(t, env, "migrate"), 0)
	sql(t, dsn, `
insert into outbox_published (part, stream, after, published_at, seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at)
overriding system value values
    (0, 'OUTBOX', 0, now() - interval '2 hours', 1, gen_random_uuid(), 'users',  'User',  '17',      'UserCreated', 'secret', '{"tenant": "a&b"}', '2026-01-02 03:04:05.678Z'),
    (0, 'OUTBOX', 0, '2026-01-02 03:05:00Z',     2, $1,                'users',  'User',  E'a\n\tb', 'UserCreated', 'secret', null,                '2026-01-02 03:04:06Z'),
    (1, 'OUTBOX', 0, now(),                      3, gen_random_uuid(), 'orders', 'Order', '17',      'OrderPaid',   'secret', null,                '2026-01-02 03:04:07Z')`, publishedID)
	sql(t, dsn, `alter table outbox alter seq restart with 4`)
	return dsn, env
}

func TestReplayWrongCommandLines(t *testing.T) {
	for args, want := range map[string]string{
		"":                                "want IDs, or flags that select events, or --all (see outbox-relay replay --help)",
		"--new-ids --dry-run":             "want IDs",
		"1":                               `ID "1" is not an event id (a UUID)`,
		publishedID + " --all":            "IDs exclude --all",
		publishedID + " --topic users":    "IDs exclude --all",
		"--since yesterday":               `--since is "yesterday", want a time such as`,
		"--until -10m":                    `--until is "-10m"`,
		"--all --limit -1":                "--limit is -1",
		"--since 2026-01-02T03:04:05":     "--since",
		"--all --aggregate-type A --sinc": "unknown flag: --sinc",
	} {
		got := execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere}, append([]string{"replay"}, strings.Fields(args)...)...)
		expectCode(t, got, 2)
		expectText(t, "standard error of replay "+args, got.stderr, want)
	}
	got := execute(t, nil, "replay", "--help")
	expectCode(t, got, 0)
	expectText(t, "help", got.stdout, "--new-ids", "--dry-run", "duplicate window", "RFC 3339", "The relay\nreads the stream back")
}

func TestReplayDryRun(t *testing.T) {
	dsn, env := library(t)
	for args, want := range map[string][]int64{
		"--all":                              {1, 2, 3},
		"--topic users":                      {1, 2},
		"--aggregate-type Order":             {3},
		"--aggregate-id 17":                  {1, 3},
		"--aggregate-id 17 --topic users":    {1},
		"--since 3h":                         {1, 3},
		"--since 3h --until 1h":              {1},
		"--since 2026-01-02T03:05:00Z":       {1, 2, 3},
		"--until 2026-01-02T04:05:01+01:00":  {2},
		publishedID:                          {2},
		"--all --limit 2":                    {1, 2},
		"--all --topic none":                 {},
		publishedID + " --new-ids --limit 0": {2},
	} {
		got := execute(t, env, append([]string{"replay", "--dry-run", "--json"}, strings.Fields(args)...)...)
		expectCode(t, got, 0)
		var list struct {
			Would  int         `json:"would_replay"`
			Events []published `json:"events"`
		}
		if err := json.Unmarshal([]byte(got.stdout), &list); err != nil || list.Events == nil {
			t.Errorf("replay --dry-run --json %s: %v, want an array of events:\n%s", args, err, got.stdout)
		}
		seqs := []int64{}
		for _, e := range list.Events {
			seqs = append(seqs, e.Seq)
		}
		if !slices.Equal(seqs, want) || list.Would < len(want) {
			t.Errorf("replay --dry-run --json %s = %v of %d, want %v", args, seqs, list.Would, want)
		}
	}

	got := execute(t, env, "replay", "--dry-run", "--all", "--limit", "2")
	expectCode(t, got, 0)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if len(lines) != 5 {
		t.Fatalf("want a headline, 2 events, what is left out and a sum, got:\n%s", got.stdout)
	}
	expectText(t, "the headline", lines[0], "SEQ  ID", "AGGREGATE ID", "PUBLISHED AT")
	expectText(t, "the second event", lines[2], "2    "+publishedID, `"a\n\tb"`, "UserCreated", "2026-01-02T03:05:00Z", "OUTBOX")
	expectText(t, "the end", lines[3]+lines[4], "… and 1 more", "would put back 3 events")
	if strings.Contains(got.stdout, "secret") {
		t.Error("a payload is shown")
	}
	if n := number(t, dsn, `select count(*) from outbox`); n != 0 {
		t.Errorf("a dry run has put back %d events", n)
	}
}

// The fields are relied on: this test is to be added to, not changed.
func TestReplayJSONIsStable(t *testing.T) {
	_, env := library(t)
	got := execute(t, env, "replay", "--dry-run", "--json", publishedID).stdout
	if want := `{"would_replay":1,"events":[{"seq":2,"id":"` + publishedID + `","topic":"users","aggregate_type":"User","aggregate_id":"a\n\tb",` +
		`"event_type":"UserCreated","headers":null,"created_at":"2026-01-02T03:04:06Z","published_at":"2026-01-02T03:05:00Z","stream":"OUTBOX","data_bytes":6}]}` + "\n"; got != want {
		t.Errorf("replay --dry-run --json =\n%s\nwant\n%s", got, want)
	}
	if got := execute(t, env, "replay", "--json", publishedID).stdout; got != `{"replayed":1}`+"\n" {
		t.Errorf("replay --json = %s", got)
	}
}

func TestReplayPutsBack(t *testing.T) {
	dsn, env := library(t)
	waiting := func() int { return number(t, dsn, `select count(*) from outbox`) }

	got := execute(t, env, "replay", publishedID, "6ba7b812-9dad-11d1-80b4-00c04fd430c8")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "outbox-relay: replay: not in the archive: 6ba7b812-9dad-11d1-80b4-00c04fd430c8")
	if n := waiting(); n != 0 {
		t.Errorf("%d were put back though one ID was wrong, want none", n)
	}
	for _, step := range []struct {
		args, want string
		waiting    int
	}{
		{"--topic users --new-ids", "put back 2 events\n", 2},
		{publishedID, "put back 1 event\n", 3},
		{"--topic none", "nothing to put back: the archive has 2 events, none of which is selected\n", 3},
		{"--since 3h", "put back 2 events\n", 5},
		{"--all", "nothing to put back: the archive is empty: nothing was published within relay.retain (5m0s), or it has been put back already\n", 5},
		{"--all --dry-run", "nothing to put back: the archive is empty: nothing was published within relay.retain (5m0s), or it has been put back already\n", 5},
	} {
		got := execute(t, env, append([]string{"replay"}, strings.Fields(step.args)...)...)
		expectCode(t, got, 0)
		if n := waiting(); got.stdout != step.want || n != step.waiting {
			t.Errorf("replay %s prints %q with %d waiting, want %q with %d", step.args, got.stdout, n, step.want, step.waiting)
		}
	}
	sql(t, dsn, `
insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at)
select 0, 'OUTBOX', 0, seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at from outbox limit 1`)
	expectText(t, "of what is pending", execute(t, env, "replay", "--all").stdout, "nothing to put back: 1 event selected, but already in the outbox or among the dead letters")
	sql(t, dsn, `delete from outbox_published`)
	env["OUTBOX_RETAIN"] = "0s"
	expectText(t, "without an archive", execute(t, env, "replay", "--all").stdout, "relay.retain (OUTBOX_RETAIN) is 0")
	env["OUTBOX_DATABASE_DSN"] = nowhere
	got = execute(t, env, "replay", "--all")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "outbox-relay: replay: cannot reach Postgres: ")
}

// A running relay publishes what the stream does not have any more, and nothing else, however short the stream's memory
// of ids is; and with new ids everything.
func TestReplayBesideARelay(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	broker := streamtest.Start(t)
	js := broker.JetStream(t)
	str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "probe"}, Duplicates: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
	relay := start(t, env)
	relay.logged("leading")
	for _, id := range []string{"1", "2", "3"} {
		insert(t, dsn, "users", "User", id, "UserCreated", id)
	}
	settled := func() bool { return number(t, dsn, `select count(*) from outbox`) == 0 }
	eventually(t, "all is settled", func() bool { return settled() && number(t, dsn, `select count(*) from outbox_published`) == 3 })
	stored := func() (events []string, ids map[string]int) {
		ids = map[string]int{}
		for _, m := range broker.Messages(t, "OUTBOX") {
			if strings.HasPrefix(m.Subject, "outbox.users.User.") {
				events = append(events, string(m.Data))
				ids[m.Header.Get(nats.MsgIdHdr)]++
			}
		}
		return events, ids
	}
	// The stream forgets ids, and somebody removes the second event.
	eventually(t, "the duplicate window has passed", func() bool {
		ack, err := js.Publish(t.Context(), "probe", nil, jetstream.WithMsgID("probe"))
		_, last := js.Publish(t.Context(), "probe", nil)
		return err == nil && last == nil && !ack.Duplicate && ack.Sequence > 6
	})
	for _, m := range broker.Messages(t, "OUTBOX") {
		if string(m.Data) == "2" {
			if err := str.DeleteMsg(t.Context(), m.Sequence); err != nil {
				t.Fatal(err)
			}
		}
	}

	got := execute(t, env, "replay", "--since", "1h")
	expectCode(t, got, 0)
	if want := "put back 3 events\n"; got.stdout != want {
		t.Errorf("replay prints %q, want %q", got.stdout, want)
	}
	eventually(t, "all is settled again", settled)
	events, _ := stored()
	if want := []string{"1", "3", "2"}; !slices.Equal(events, want) {
		t.Errorf("the stream has %v, want %v", events, want)
	}

	eventually(t, "all is in the archive again", func() bool { return number(t, dsn, `select count(*) from outbox_published`) == 3 })
	expectCode(t, execute(t, env, "replay", "--all", "--new-ids"), 0)
	eventually(t, "everything is received again", func() bool { events, _ := stored(); return len(events) == 6 })
	events, ids := stored()
	if want := []string{"1", "3", "2", "1", "2", "3"}; !slices.Equal(events, want) || len(ids) != 6 {
		t.Errorf("the stream has %v with %d ids, want %v with as many", events, len(ids), want)
	}
}
