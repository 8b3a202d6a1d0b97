package store_test

import (
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

// BenchmarkRefusals records that a page of rows was refused: for another attempt, or as dead letters.
func BenchmarkRefusals(b *testing.B) {
	const rows = 1000
	for name, dead := range map[string]bool{"retry": false, "dead": true} {
		b.Run(name, func(b *testing.B) {
			f := newFixture(b, store.Options{})
			for b.Loop() {
				b.StopTimer()
				f.exec(b, `truncate outbox, outbox_dead; insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'A', n::text, 'E', 'x' from generate_series(1, 1000) n`)
				response, err := f.leader(b).RoundTrip(b.Context(), store.Request{Fetch: &store.Fetch{Rows: rows, Bytes: 1 << 20}})
				if err != nil || len(response.Rows) != rows {
					b.Fatal(len(response.Rows), err)
				}
				var failures []store.Failure
				for _, row := range response.Rows {
					failures = append(failures, store.Failure{Ref: store.Ref{Seq: row.Seq, ID: row.ID}, Attempts: 1, Reason: "header \"X/Trace\": not a header name"})
				}
				request := store.Request{Failed: failures}
				if dead {
					request = store.Request{Dead: failures}
				}
				b.StartTimer()
				if _, err := f.leader(b).RoundTrip(b.Context(), request); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*rows), "us/row")
		})
	}
}
