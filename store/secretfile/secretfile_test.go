package secretfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/store/secretfile"
)

func TestRead(t *testing.T) {
	for _, test := range []struct{ name, content, want, fault string }{
		{name: "a line", content: "s3cr3t\n", want: "s3cr3t"},
		{name: "a line of Windows", content: "s3cr3t\r\n", want: "s3cr3t"},
		{name: "no end of line", content: " s3cr3t ", want: " s3cr3t "},
		{name: "nothing", content: "\n", fault: "it is empty"},
		{name: "lines", content: "s3cr3t\nmore\n", fault: "it has several lines, or a zero byte"},
		{name: "a zero byte", content: "s3cr3t\x00", fault: "it has several lines, or a zero byte"},
		{name: "the longest", content: strings.Repeat("x", secretfile.MaxSize), want: strings.Repeat("x", secretfile.MaxSize)},
		{name: "too long", content: strings.Repeat("x", secretfile.MaxSize+1), fault: "it has more than 65536 bytes"},
	} {
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := secretfile.Read(file)
		if got != test.want || (err == nil) != (test.fault == "") || err != nil && err.Error() != test.fault {
			t.Errorf("%s: got %.20q, %v", test.name, got, err)
		}
	}
	if _, err := secretfile.Read(t.TempDir()); err == nil || err.Error() != "it is not a regular file" {
		t.Errorf("a directory: %v", err)
	}
	if _, err := secretfile.Read(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
}
