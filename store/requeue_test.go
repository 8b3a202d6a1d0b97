package store_test

import (
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

// Headers that a person sets take the place of those of the same names, wherever the dead letter is and whatever its headers were.
func TestRequeueSetsHeaders(t *testing.T) {
	f, _ := cemetery(t)
	f.begin(t)
	f.exec(t, `update outbox_dead set headers = '{"a": 1, "b": [true]}' where seq = 1`)
	f.exec(t, `update outbox_dead set headers = '[1]' where seq = 2`)
	f.exec(t, `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data, headers, last_error, given_up_at) overriding system value
values (900, 't', 'A', '1', 'E', '', '{"b": "x"}', 'kept', now())`)
	n, err := f.RequeueWith(t.Context(), store.RequeueOptions{SetHeaders: map[string]string{"b": "y"}}, store.DeadKey{Seq: 1}, store.DeadKey{Seq: 2}, store.DeadKey{Seq: 900})
	if n != 3 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	for seq, want := range map[int]string{1: `{"a": 1, "b": "y"}`, 2: `{"b": "y"}`, 900: `{"b": "y"}`} {
		if got := query[string](t, f, `select headers::text from outbox where seq = $1 and given_up_at is null`, seq); got != want {
			t.Errorf("event %d has the headers %s, want %s", seq, got, want)
		}
	}
	if _, err := f.RequeueWith(t.Context(), store.RequeueOptions{SetHeaders: map[string]string{"Nats-Msg-Id": "1"}}, store.DeadKey{Seq: 4}); err == nil {
		t.Error("a header that commands the server was set")
	}
}
