package stream

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestReusingEncoderEqualsEncoder(t *testing.T) {
	template, err := ParseTemplate(DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	plain := Event{Seq: 7, ID: id, Topic: "t", AggregateType: "A", AggregateID: "a.b\r\n", EventType: "E", Data: []byte("x"), CreatedAt: time.Unix(1, 5)}
	headers := plain
	headers.Headers = []byte(`{"Trace": "1"}`)
	huge := plain
	huge.AggregateID = strings.Repeat("x", MaxHeader)
	noID := plain
	noID.ID = uuid.Nil
	for _, encoder := range []Encoder{{Template: template}, {Template: template, CloudEventsSource: "/s"}} {
		c := NewReusingEncoder(encoder)
		for _, ev := range []Event{plain, headers, huge, noID, plain} {
			got, gotErr := c.Message(&ev, "r")
			want, wantErr := encoder.Message(&ev, "r")
			if !reflect.DeepEqual(gotErr, wantErr) {
				t.Errorf("got error %v, want %v", gotErr, wantErr)
			}
			if wantErr == nil && (got.Subject != want.Subject || got.Reply != want.Reply || string(got.Data) != string(want.Data) || !reflect.DeepEqual(got.Header, want.Header)) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
	}
}

func BenchmarkReusingEncoder(b *testing.B) {
	template, err := ParseTemplate(DefaultTemplate)
	if err != nil {
		b.Fatal(err)
	}
	c := NewReusingEncoder(Encoder{Template: template})
	ev := Event{Seq: 1_234_567, ID: uuid.New(), Topic: "users", AggregateType: "User", AggregateID: "12345", EventType: "UserCreated", Data: make([]byte, 256), CreatedAt: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Message(&ev, "_INBOX.x.1"); err != nil {
			b.Fatal(err)
		}
	}
}
