package stream

import "fmt"

// Check names a condition of exactly-once delivery that a stream may not meet.
type Check string

// The checks of a stream.
const (
	CheckDuplicateWindow Check = "duplicate_window" // It recognises ids for long enough.
	CheckRetention       Check = "retention"        // It keeps messages that were consumed.
	CheckStorage         Check = "storage"          // It survives a restart of its servers.
	CheckPersistence     Check = "persistence"      // An acknowledged message is on the disk.
	CheckLimits          Check = "limits"           // It keeps messages for longer than a moment, and refuses none for its subject.
)

// Checks returns all of them.
func Checks() []Check {
	return []Check{CheckDuplicateWindow, CheckRetention, CheckStorage, CheckPersistence, CheckLimits}
}

// A Warning says that a stream does not meet a condition, and what may happen therefore.
type Warning struct {
	// Check is the condition; empty for what happened once and is no condition.
	Check Check
	// Text is for people. It names the remedy, if there is one.
	Text string
}

// String returns the text.
func (w Warning) String() string { return w.Text }

// warnings collects what a look at a stream finds.
type warnings []Warning

func (w *warnings) add(check Check, format string, args ...any) {
	*w = append(*w, Warning{check, fmt.Sprintf(format, args...)})
}

// texts returns the warnings for an error.
func (w warnings) texts() []string {
	texts := make([]string, len(w))
	for i := range w {
		texts[i] = w[i].Text
	}
	return texts
}
