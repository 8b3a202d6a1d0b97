package history

import (
	"testing"

	"github.com/go-outbox/go-outbox/stream"
)

// FuzzMessageQuery passes any answer to a question for a message: nothing crashes, and a message counts only if it is
// one that was asked for.
func FuzzMessageQuery(f *testing.F) {
	for _, data := range []string{
		`{"message":{"subject":"s","seq":5,"hdrs":"TkFUUy8xLjANCg0K","time":"2026-01-01T00:00:00Z"}}`, `{"message":{"subject":"x","seq":4}}`, `{"message":{}}`,
		`{"error":{"code":404,"err_code":10037}}`, `{"error":{}}`, `{}`, `null`, ``, `{"message":{"subject":"s","seq":5,"hdrs":"//8="}}`,
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, query := range []messageQuery{{Sequence: 5}, {LastFor: "s"}, {Sequence: 3, NextFor: "s"}} {
			msg, err := query.answered(data)
			if err != nil && stream.Classify(err).Error() == "" {
				t.Error("an error without a text")
			}
			if msg == nil {
				continue
			}
			if msg.Sequence == 0 || query.LastFor+query.NextFor != "" && msg.Subject != "s" || query.NextFor != "" && msg.Sequence < 3 || query.LastFor+query.NextFor == "" && msg.Sequence != 5 {
				t.Errorf("%+v is answered by %+v", query, msg)
			}
			if term, ok := termOf(msg); ok && (term < 1 || term > maxTerm) {
				t.Errorf("term %d is believed", term)
			}
		}
	})
}
