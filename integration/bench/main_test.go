package bench_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/integration/harness"
)

func TestMain(m *testing.M) { harness.Main(tabulated{m}) }

// tabulated prints what the benchmarks reported once more at their end, as a table.
type tabulated struct{ *testing.M }

func (t tabulated) Run() int {
	code := t.M.Run()
	results.print()
	return code
}

// results are what the benchmarks of this run have reported.
var results table //nolint:gochecknoglobals // TestMain prints what the benchmarks fill.

// table gathers metrics by benchmark.
type table struct {
	names []string
	rows  map[string][]string
}

// report reports a metric as [testing.B.ReportMetric] does, and puts it into the table.
func report(b *testing.B, value float64, unit string) {
	b.Helper()
	b.ReportMetric(value, unit)
	if results.rows == nil {
		results.rows = make(map[string][]string)
	}
	name := strings.ReplaceAll(strings.TrimPrefix(b.Name(), "Benchmark"), "_", " ")
	if !slices.Contains(results.names, name) {
		results.names = append(results.names, name)
	}
	format := "%.2f %s"
	if value >= 100 {
		format = "%.0f %s"
	}
	results.rows[name] = append(results.rows[name], fmt.Sprintf(format, value, unit))
}

func (t table) print() {
	if len(t.names) == 0 {
		return
	}
	fmt.Fprintf(os.Stdout, "\n| benchmark | results |\n|---|---|\n")
	for _, name := range t.names {
		fmt.Fprintf(os.Stdout, "| %s | %s |\n", name, strings.Join(t.rows[name], ", "))
	}
	fmt.Fprintln(os.Stdout)
}

// within calls a function with a scope of its own: what the function started, and the files that it made, are gone when within
// returns, so that they take no processor time and memory from what comes next.
func within[T any](tb testing.TB, do func(tb testing.TB) T) T {
	tb.Helper()
	s := &scope{TB: tb}
	defer s.end() // In a test that fails, too.
	return do(s)
}

// scope is a part of a test that ends before it.
type scope struct {
	testing.TB

	cleanups []func()
}

func (s *scope) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *scope) TempDir() string {
	s.Helper()
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) }) // It is for somebody else to see to.
	return dir
}

func (s *scope) end() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}
