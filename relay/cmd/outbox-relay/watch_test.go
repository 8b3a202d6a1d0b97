package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// What waits and why, who stands by and how fast it goes.
func TestStatusOfTheFlow(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": streamtest.Start(t).URL(), "OUTBOX_ON_DEAD": "hold"}
	leader := start(t, env)
	leader.logged("leading")
	start(t, env).logged("standing by: another relay leads")
	sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'A', n::text, 'E', '' from generate_series(1, 600) n`)
	eventually(t, "all is published", func() bool { return number(t, dsn, `select count(*) from outbox_published`) == 600 })
	expectCode(t, execute(t, env, "pause", "--reason", "test"), 0)
	leader.logged(pausedLine)
	sql(t, dsn, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
values (1, gen_random_uuid(), 't', 'A', 'held', 'E', '', now(), 3, 'refused');
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'A', 'held', 'E', '' from generate_series(1, 100) n;
update outbox set retry_at = now() + interval '1 hour', last_error = 'refused' where seq = (select max(seq) from outbox)`)
	var s status
	eventually(t, "the relays stand by", func() bool {
		sql(t, dsn, `update outbox_published set published_at = now()`)
		got := execute(t, env, "status", "--json")
		if err := json.Unmarshal([]byte(got.stdout), &s); err != nil || got.code != 0 {
			t.Fatalf("%v:\n%s%s", err, got.stdout, got.stderr)
		}
		return *s.Standbys == 1
	})
	if *s.Held != 1 || *s.Retrying != 1 || *s.Rate < 59 || *s.Rate > 61 || *s.LastAgo > 10 || *s.Left < 1.6 || *s.Left > 1.7 {
		t.Errorf("held %d, retrying %d, rate %v, last %v ago, %v left", *s.Held, *s.Retrying, *s.Rate, *s.LastAgo, *s.Left)
	}
	expectText(t, "status", execute(t, env, "status").stdout, "published       60 events/s in the past 10s, the last ", " ago; at that rate nothing is pending in 1.7s\n",
		"held            1 aggregates", "retrying        1 aggregates", "standbys        1\n")

	// Of a lot in a short time, the rate is that of the short time; what is older than ten seconds does not count.
	sql(t, dsn, `update outbox_published set published_at = published_at - interval '1 hour'`)
	expectText(t, "status", execute(t, env, "status").stdout, "published       0 events/s in the past 10s, the last 1h0m")
	sql(t, dsn, `
insert into outbox_published (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, stream, after, part, published_at)
select n, gen_random_uuid(), 't', 'A', n::text, 'E', '', now(), 'OUTBOX', 0, 0, clock_timestamp() - (100000 - n) * interval '0.0001 second' from generate_series(1, 100000) n`)
	got := execute(t, env, "status", "--json")
	if err := json.Unmarshal([]byte(got.stdout), &s); err != nil || *s.Rate < 2000 || *s.Rate > 11_000 { // 10,000 a second, and then nothing for a moment.
		t.Errorf("a rate of %v events/s (%v)", *s.Rate, err)
	}
}

func TestStatusWatch(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn}
	expectCode(t, execute(t, env, "migrate"), 0)
	expectCode(t, execute(t, env, "status", "--watch", "--every", "1ms"), 2)
	insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	watching := func(args ...string) (stdout *output, stop func() int) {
		ctx, cancel := context.WithCancel(t.Context())
		stdout, code := newOutput(), make(chan int, 1)
		go func() {
			code <- run(ctx, append([]string{"status", "--watch", "--every", "300ms"}, args...), env.list(), stdout, stdout)
		}()
		return stdout, func() int { cancel(); return <-code }
	}
	shown, stop := watching()
	shown.await(t, "the first status", func(text string) bool { return strings.Contains(text, strings.Repeat("█", barWidth)+"  1\n") })
	sql(t, dsn, `delete from outbox`)
	shown.await(t, "the trend", func(text string) bool {
		return strings.Contains(text, strings.Repeat("░", barWidth)+"  0, ") && strings.Contains(text, "/s fewer\n")
	})
	if code := stop(); code != 0 {
		t.Errorf("exit code %d after an interruption", code)
	}
	if strings.Contains(shown.String(), "\x1b") {
		t.Error("it draws although there is no terminal")
	}
	shown, stop = watching("--json")
	shown.await(t, "two objects", func(text string) bool { return strings.Count(text, `{"table":"public.outbox"`) == 2 })
	if code := stop(); code != 0 {
		t.Errorf("exit code %d after an interruption", code)
	}
}

func TestTrend(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		before, pending int64
		want            string
	}{
		{100, 200, ", 50/s more"},
		{200, 100, ", 50/s fewer: none in 2s"},
		{200, 0, ", 100/s fewer"},
		{200, 200, ", as before"},
	} {
		w := watched{at: now.Add(-2 * time.Second), pending: test.before}
		if got := w.trend(test.pending, now); got != test.want {
			t.Errorf("from %d to %d: %q, want %q", test.before, test.pending, got, test.want)
		}
	}
	if got := (&watched{}).trend(5, now); got != "" {
		t.Errorf("of the first: %q", got)
	}
	for value, want := range map[float64]int{0: 0, 0.1: 1, 50: 20, 100: 40, 200: 40} {
		if got := strings.Count(bar(value, 100), "█"); got != want {
			t.Errorf("a bar of %v in 100 has %d, want %d", value, got, want)
		}
	}
}
