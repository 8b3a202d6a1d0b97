package doctor

import "testing"

// What texts of ours tell to run goes before the settings that they name, and each is named once.
func TestRemedyIn(t *testing.T) {
	for text, want := range map[string]string{
		"it is off: an owner must run `ALTER TABLE x`, or `SELECT 1`; then `SELECT 1` again": "`ALTER TABLE x`; `SELECT 1`",
		"it goes elsewhere: set OUTBOX_STREAM to x or OUTBOX_ADOPT_STREAM to true":           "OUTBOX_STREAM, OUTBOX_ADOPT_STREAM",
		"it demands bytes: set stream_max_bytes (Setup.MaxBytes)":                            "stream_max_bytes",
		"it takes 100 bytes (max_payload): raise max_payload":                                "raise max_payload",
		"it holds 5 messages (max_msgs): run `nats stream edit`, set nats_domain":            "`nats stream edit`",
		"it cannot be reached": "",
	} {
		if got := remedyIn(text); got != want {
			t.Errorf("of %q: got %q, want %q", text, got, want)
		}
	}
}
