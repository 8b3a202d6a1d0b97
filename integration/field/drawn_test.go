package field_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

//nolint:gochecknoglobals // A flag.
var drawSeed = flag.Int64("field.seed", 0, "the seed of TestDrawnRows; 0 for a few known ones, and with -field.long for new ones")

const (
	drawnRows    = 40              // Of one seed.
	shrinkWithin = 3 * time.Minute // Then what is left is small enough.
)

// Rows that a seed draws, of which each has one to four extremes. What fails is made smaller: to fewer rows, then to fewer
// extremes.
func TestDrawnRows(t *testing.T) {
	t.Parallel()
	seeds := []int64{1, 2, 3}
	switch {
	case *drawSeed != 0:
		seeds = []int64{*drawSeed}
	case *long:
		for range 20 {
			seeds = append(seeds, rand.Int64N(1_000_000_000))
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			rows := harness.HostileRows(rand.New(rand.NewPCG(uint64(seed), 0)), drawnRows)
			if holds(t, "all", rows) || *drawSeed == 0 && !*long {
				return
			}
			rows = smaller(t, rows, time.Now().Add(shrinkWithin))
			t.Errorf("what is left of it: go test ./integration/field -v -run TestOneRow -field.row '%s'", text(rows))
		})
	}
}

// holds reports whether all is well with the rows.
func holds(t *testing.T, name string, rows []harness.HostileRow) bool {
	t.Helper()
	return t.Run(name, func(t *testing.T) { rowsCase{name: name, rows: text(rows)}.run(t) })
}

func text(rows []harness.HostileRow) string {
	texts := make([]string, len(rows))
	for i, row := range rows {
		texts[i] = row.String()
	}
	return strings.Join(texts, ", ")
}

// smaller leaves out what is not needed for a failure: half of the rows as often as that goes, then single extremes.
func smaller(t *testing.T, rows []harness.HostileRow, deadline time.Time) []harness.HostileRow {
	t.Helper()
	for len(rows) > 1 && time.Now().Before(deadline) {
		half := len(rows) / 2
		switch {
		case !holds(t, fmt.Sprintf("first half of %d", len(rows)), rows[:half]):
			rows = rows[:half]
		case !holds(t, fmt.Sprintf("second half of %d", len(rows)), rows[half:]):
			rows = rows[half:]
		default:
			return rows // It takes some of both.
		}
	}
	for i := 0; len(rows) == 1 && i < len(rows[0]) && len(rows[0]) > 1 && time.Now().Before(deadline); {
		fewer := slices.Delete(slices.Clone(rows[0]), i, i+1)
		if holds(t, "without "+rows[0][i].String(), []harness.HostileRow{fewer}) {
			i++
			continue
		}
		rows[0] = fewer
	}
	return rows
}
