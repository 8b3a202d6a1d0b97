package mutants

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Mutant is the project without one of its safeguards.
type Mutant struct {
	Name    string
	Without string // What the safeguard did, and is not done.
	Edits   []Edit
	Killer  Killer
}

// Edit replaces a text that occurs exactly once in a file.
type Edit struct {
	File     string // From the module's root, with slashes.
	Old, New string
}

// Killer is the cheapest test that fails because of a mutant.
type Killer struct {
	Package   string // From the module's root, as "./stream".
	Test      string // As go test's -run takes it.
	Complaint string // In the output of the test.
}

// Overlay writes the changed files and the description of them that go's flag -overlay takes into a directory, and returns
// the description's name. Root is the module's root. It is an error if an edit does not apply.
func (m Mutant) Overlay(root, dir string) (overlay string, err error) {
	replace := map[string]string{}
	for i, e := range m.Edits {
		original := filepath.Join(root, filepath.FromSlash(e.File))
		read := original
		if changed, ok := replace[original]; ok {
			read = changed
		}
		text, err := os.ReadFile(read)
		if err != nil {
			return "", fmt.Errorf("mutant %q: %w", m.Name, err)
		}
		if n := bytes.Count(text, []byte(e.Old)); n != 1 {
			return "", fmt.Errorf("mutant %q no longer applies: %s contains this %d times, want once; if the code has moved, move the edit with it:\n%s", m.Name, e.File, n, e.Old)
		}
		changed := filepath.Join(dir, fmt.Sprintf("%s-%d.go", m.Name, i))
		if err := os.WriteFile(changed, bytes.Replace(text, []byte(e.Old), []byte(e.New), 1), 0o600); err != nil {
			return "", fmt.Errorf("mutant %q: %w", m.Name, err)
		}
		replace[original] = changed
	}
	description, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("mutant %q: %w", m.Name, err)
	}
	overlay = filepath.Join(dir, m.Name+".json")
	if err := os.WriteFile(overlay, description, 0o600); err != nil {
		return "", fmt.Errorf("mutant %q: %w", m.Name, err)
	}
	return overlay, nil
}

// Named returns the mutant of a name.
func Named(name string) (Mutant, bool) {
	for _, m := range All() {
		if m.Name == name {
			return m, true
		}
	}
	return Mutant{}, false
}

// All returns all mutants there are.
func All() []Mutant {
	return []Mutant{
		{
			Name:    "recover",
			Without: "the stream is not read back at the beginning of a term",
			Edits: []Edit{{
				File: "relay/recovery.go",
				Old:  "if first || r.fence.Consumed {",
				New:  "if true {",
			}},
			Killer: Killer{"./relay", "^TestExplore$/^aba,_2_late,_pages_of_10,_2_faults", "a counterexample"},
		},
		{
			Name:    "paused-by-hand",
			Without: "a pause that a person has ordered stops nothing",
			Edits: []Edit{{
				File: "relay/breaker.go",
				Old:  " && !c.stopping && !c.byHand.paused\n",
				New:  " && !c.stopping\n",
			}},
			Killer: Killer{"./relay", "^TestPausedByHand$", "it publishes"},
		},
		{
			Name:    "pause-asked",
			Without: "a leader that holds as much as it may does not ask whether a pause has ended",
			Edits: []Edit{{
				File: "relay/byhand.go",
				Old:  "return b.paused && !now.Before(b.askAt)",
				New:  "return false",
			}},
			Killer: Killer{"./relay", "^TestPausedByHand$", "no round trip is due"},
		},
		{
			Name:    "fence",
			Without: "an ordered batch begins without the fence's header",
			Edits: []Edit{{
				File: "stream/publisher/known.go",
				Old:  "if k.subject == \"\" {\n\t\treturn lines",
				New:  "if true {\n\t\treturn lines",
			}},
			Killer: Killer{"./stream/history", "^TestFenceRefusesEarlierTerms$", "of the former term is stored"},
		},
		{
			Name:    "lease",
			Without: "the lease is not looked at before an event or a write",
			Edits: []Edit{
				{
					File: "relay/term.go",
					Old:  "if r.publisher.Guards() {",
					New:  "if r.publisher.Guards() && false {",
				},
				{
					File: "relay/term.go",
					Old:  "(i%every != 0 || t.lease.Valid())",
					New:  "(i%every != 0 || t.lease.Valid() || true)",
				},
			},
			Killer: Killer{"./relay", "^TestExplore$/^aba,_2_late,_pages_of_10,_2_faults", "a counterexample"},
		},
		{
			Name:    "reconnect-buffer",
			Without: "nats.go keeps its buffer of 8 MiB for times without a connection",
			Edits: []Edit{{
				File: "stream/connect.go",
				Old:  "nats.ReconnectBufSize(-1)",
				New:  "nats.ReconnectBufSize(nats.DefaultReconnectBufSize)",
			}},
			Killer: Killer{"./stream", "^TestConnectionOutlivesAnOutageWithoutBuffering$", "publish during an outage"},
		},
		{
			Name:    "one-in-flight",
			Without: "an aggregate's next event is sent before the outcome of the one before is known",
			Edits: []Edit{{
				File: "relay/core.go",
				Old:  "case l.inFlight == 0 || c.ordered:",
				New:  "case true:",
			}},
			Killer: Killer{"./relay", "^TestOneInFlightPerAggregate$", "first: got"},
		},
		{
			Name:    "wait-for-the-letter",
			Without: "an aggregate goes on before its dead letter is recorded",
			Edits: []Edit{{
				File: "relay/core.go",
				Old:  "c.blocked.record(a, c.bound(a, row.Seq))",
				New:  "c.goBack(c.bound(a, row.Seq))",
			}},
			Killer: Killer{"./relay", "^TestExplore$/refused", "a counterexample"},
		},
		{
			Name:    "put-back-while-blocked",
			Without: "a blocked aggregate goes on without the rows that were put back meanwhile",
			Edits: []Edit{{
				File: "relay/core.go",
				Old:  "c.blocked.lower(floor)",
				New:  "_ = floor",
			}},
			Killer: Killer{"./relay", "^TestExplore$/refused", "a counterexample"},
		},
		{
			Name:    "delete-by-key",
			Without: "what is published is removed by range",
			Edits: []Edit{{
				File: "store/roundtrip.go",
				Old:  "inBitmap: t.removal(inBitmap, ` and o.seq <= `+goesOn(\"$2\", \"$4\"), 3),",
				New:  "inBitmap: t.removal(`o.seq <= $2 and $1::bigint <= $2::bigint and $3::bytea is not null`, ` and $4::bigint is not null`, 3),",
			}},
			Killer: Killer{"./store", "^TestSettleRemovesWhatItNames$", "left are"},
		},
		{
			Name:    "duplicate-ack",
			Without: "that the stream has an event already counts as a failure",
			Edits: []Edit{{
				File: "stream/answer/answer.go",
				Old:  "\tcase a.Error != nil:\n\t\treturn 0, false, stream.Classify(a.Error)\n\tcase a.Type",
				New:  "\tcase a.Duplicate:\n\t\treturn 0, false, stream.Malformed(\"a duplicate\")\n\tcase a.Error != nil:\n\t\treturn 0, false, stream.Classify(a.Error)\n\tcase a.Type",
			}},
			Killer: Killer{"./stream/publisher", "^TestAnswerToAnEvent$/^a_duplicate$", "want that it is stored"},
		},
		{
			Name:    "verify",
			Without: "what a look at the stream finds is ignored",
			Edits: []Edit{{
				File: "relay/lossdetector.go",
				Old:  "case errors.As(v.err, &lost), errors.As(v.err, &unfit):",
				New:  "case false && errors.As(v.err, &lost), errors.As(v.err, &unfit):",
			}},
			Killer: Killer{"./relay", "^TestLossWhileIdle$", "0 times after the loss"},
		},
		{
			Name:    "in-process",
			Without: "that an event is being stored (10158) counts as success",
			Edits: []Edit{{
				File: "stream/answer/answer.go",
				Old:  "\tcase a.Error != nil:\n\t\treturn 0, false, stream.Classify(a.Error)\n\tcase a.Type",
				New:  "\tcase a.Error != nil && a.Error.ErrorCode == stream.CodeDuplicateInProcess:\n\t\treturn 0, true, nil\n\tcase a.Error != nil:\n\t\treturn 0, false, stream.Classify(a.Error)\n\tcase a.Type",
			}},
			Killer: Killer{"./stream/publisher", "^TestAnswerToAnEvent$/^a_duplicate_in_process$", "want doubt"},
		},
		{
			Name:    "inbox",
			Without: "a consumer's inbox lets an event pass that was handled before",
			Edits: []Edit{{
				File: "stream/consumer/lane.go",
				Old:  "if tag.RowsAffected() > 0 {",
				New:  "if tag.RowsAffected() >= 0 {",
			}},
			Killer: Killer{"./stream/consumer", "^TestWhatComesAgainIsSkipped$", "effects, want 210"},
		},
		{
			Name:    "fitness",
			Without: "a leader that cannot publish stays",
			Edits: []Edit{{
				File: "relay/blindness.go",
				Old:  "case fit == 0 || c.circuit.breaker != breakerOpen",
				New:  "case true || c.circuit.breaker != breakerOpen",
			}},
			Killer: Killer{"./relay", "^TestBlindLeaderMakesWay$", "does not make way"},
		},
		{
			Name:    "another-stream",
			Without: "any stream's answer counts as ours",
			Edits: []Edit{{
				File: "stream/answer/answer.go",
				Old:  "if a.Stream != \"\" && a.Stream != ours {",
				New:  "if a.Stream != \"\" && false {",
			}},
			Killer: Killer{"./stream/publisher", "^TestAnotherStreamAnswers$/^by_itself$", "want doubt"},
		},
	}
}
