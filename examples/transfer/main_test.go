package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary be one of the children, since the program starts itself.
func TestMain(m *testing.M) {
	if beChild() {
		return
	}
	os.Exit(m.Run())
}

func TestTransfer(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{"-transfers=400", "-kills=6", "-v"}, &out, t.Output())
	t.Logf("%s", &out)
	if err != nil {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(out.String(), "Nothing is lost and nothing is made") {
		t.Error("there is no verdict")
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-transfers=0"}, {"-kills=-1"}, {"more"}, {"-unknown"}} {
		if err := run(t.Context(), args, t.Output(), t.Output()); err == nil {
			t.Errorf("%q: got no error", args)
		}
	}
}
