package field_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/go-outbox/go-outbox/integration/harness"
)

//nolint:gochecknoglobals // A flag.
var long = flag.Bool("field.long", os.Getenv("FIELD_LONG") != "", "also what takes minutes and gigabytes; also by FIELD_LONG")

// atOnce is how many tests run at once: they mostly watch.
const atOnce = "6"

func TestMain(m *testing.M) {
	if harness.Racing {
		fmt.Println("skipped: it takes times and memory, which mean nothing under the race detector")
		os.Exit(0)
	}
	if err := flag.Set("test.parallel", atOnce); err != nil { // A flag of the command line comes after it, and wins.
		panic(err)
	}
	harness.Main(m)
}

// onlyLong skips a test that is not for every day.
func onlyLong(t *testing.T) {
	t.Helper()
	if !*long {
		t.Skip("only with -field.long")
	}
}
