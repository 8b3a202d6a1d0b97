package store

import (
	"fmt"
	"strings"
)

// A migration file is one step, or several that each begin with a line "-- step: …". One more comment line says how the
// step is run on tables that are in use. TABLE and INDEX are names of the template, such as Outbox:
//
//	-- lock: TABLE                 with an exclusive lock on TABLE, which is asked for again and again but never waited for long
//	-- concurrently: TABLE INDEX   outside of a transaction; what an attempt left of INDEX is removed first
//
// Without one, it is a transaction that takes no lock which producers or the relay wait for. Where the tables are created,
// all steps are one transaction.
const stepMark = "-- step: "

// concurrently is what the template puts after "index"; where the tables are created it is nothing.
const concurrently = " concurrently"

// stepKind is how a step is run.
type stepKind int

const (
	plainStep stepKind = iota
	lockStep
	concurrentStep
)

// step is a part of a migration that is done as a whole or not at all.
type step struct {
	what         string // The first line of its comment.
	kind         stepKind
	table, index string // That the kind is about, in the words of SQL.
	sql          string
}

// steps parses a migration in which names have been put.
func steps(script string, names map[string]any) ([]step, error) {
	preamble, rest, several := strings.Cut("\n"+script, "\n"+stepMark)
	if !several {
		return []step{{what: "all", sql: preamble}}, nil
	}
	var found []step
	for text := range strings.SplitSeq(rest, "\n"+stepMark) {
		s, err := parseStep(text, names)
		if err != nil {
			return nil, err
		}
		found = append(found, s)
	}
	return found, nil
}

// parseStep parses what follows the mark.
func parseStep(text string, names map[string]any) (step, error) {
	what, _, _ := strings.Cut(text, "\n")
	s := step{what: strings.TrimRight(what, ".,"), sql: stepMark + text}
	for line := range strings.Lines(text) {
		for mark, kind := range map[string]stepKind{"-- lock: ": lockStep, "-- concurrently: ": concurrentStep} {
			of, ok := strings.CutPrefix(strings.TrimSpace(line), mark)
			if !ok {
				continue
			}
			table, index, _ := strings.Cut(of, " ")
			s.kind = kind
			if s.table, ok = names[table].(string); !ok {
				return step{}, fmt.Errorf("%s: no table %q", s, table)
			}
			if s.index, ok = names[index].(string); !ok && kind == concurrentStep {
				return step{}, fmt.Errorf("%s: no index %q", s, index)
			}
		}
	}
	return s, nil
}

// plainly is the statement of a concurrent step for a small table.
func (s step) plainly() string { return strings.Replace(s.sql, " index"+concurrently, " index", 1) }

// String names the step in errors and in the log.
func (s step) String() string { return fmt.Sprintf("step %q", s.what) }
