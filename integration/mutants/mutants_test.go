package mutants_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/mutants"
)

//nolint:gochecknoglobals // A flag.
var kill = flag.Bool("kill", false, "compile each mutant and run the test that kills it, which takes minutes")

// killedWithin bounds a killer's run. A mutant may make a test wait for ever.
const killedWithin = time.Minute

// root is the module's root.
const root = "../.."

// Every mutant applies to the code as it is, and changes it.
func TestApply(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mutants.All() {
		if seen[m.Name] {
			t.Errorf("two mutants are called %q", m.Name)
		}
		seen[m.Name] = true
		if _, err := overlay(t, m); err != nil {
			t.Error(err)
		}
	}
}

// An edit that does not apply exactly once is an error which says so.
func TestEditsThatDoNotApply(t *testing.T) {
	for name, test := range map[string]struct {
		old, want string
	}{
		"gone":  {"no such text " + "anywhere", "contains this 0 times"},
		"twice": {"func ", "want once"},
	} {
		t.Run(name, func(t *testing.T) {
			m := mutants.Mutant{Name: name, Edits: []mutants.Edit{{File: "integration/mutants/mutants.go", Old: test.old}}}
			if _, err := overlay(t, m); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	m := mutants.Mutant{Name: "away", Edits: []mutants.Edit{{File: "no/such/file.go", Old: "x"}}}
	if _, err := overlay(t, m); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that the file is not there", err)
	}
}

// Each mutant compiles and fails the test that is named as its killer, for the expected reason; without the mutant the same
// test passes.
func TestKilled(t *testing.T) {
	if !*kill {
		t.Skip("takes minutes: make mutants")
	}
	dir := t.TempDir()
	intact := map[string]string{} // The test binary of a package without a mutant.
	for _, m := range mutants.All() {
		t.Run(m.Name, func(t *testing.T) {
			if intact[m.Killer.Package] == "" {
				intact[m.Killer.Package] = compile(t, dir, m.Killer.Package)
			}
			if out, err := run(t, intact[m.Killer.Package], m.Killer); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
				t.Fatalf("without the mutant, %s of %s must pass: %v\n%s", m.Killer.Test, m.Killer.Package, err, tail(out))
			}
			file, err := overlay(t, m)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			out, err := run(t, compile(t, t.TempDir(), m.Killer.Package, "-overlay="+file), m.Killer)
			switch _, failed := errors.AsType[*exec.ExitError](err); {
			case err == nil:
				t.Errorf("it lives: %s of %s passes although %s", m.Killer.Test, m.Killer.Package, m.Without)
			case !failed:
				t.Errorf("%s of %s did not run to its end: %v\n%s", m.Killer.Test, m.Killer.Package, err, tail(out))
			case !bytes.Contains(out, []byte(m.Killer.Complaint)):
				t.Errorf("%s of %s does not complain about %q:\n%s", m.Killer.Test, m.Killer.Package, m.Killer.Complaint, tail(out))
			default:
				t.Logf("killed by %s of %s, in %v with compiling", m.Killer.Test, m.Killer.Package, time.Since(began).Round(time.Second/10))
			}
		})
	}
}

func overlay(t *testing.T, m mutants.Mutant) (file string, err error) {
	t.Helper()
	absolute, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	return m.Overlay(absolute, t.TempDir())
}

// compile returns the test binary of a package. A mutant that does not compile is none.
func compile(t *testing.T, dir, pkg string, flags ...string) (binary string) {
	t.Helper()
	binary = filepath.Join(dir, filepath.Base(pkg)+".test")
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"test", "-c"}, flags...), "-o", binary, pkg)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return binary
}

// run runs a killer in the folder of its package, as go test does.
func run(t *testing.T, binary string, k mutants.Killer) (out []byte, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), killedWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.count=1", "-test.run="+k.Test)
	cmd.Dir = filepath.Join(root, k.Package)
	out, err = cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not within %v", killedWithin)
	}
	return out, err
}

// tail is the end of a test's output.
func tail(out []byte) []byte { return out[max(0, len(out)-4000):] }
