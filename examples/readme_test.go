package examples_test

import (
	"os"
	"strings"
	"testing"
)

// The README's snippets about the relay as a library are parts of the examples, so they compile and work.
func TestReadme(t *testing.T) {
	readme := read(t, "../README.md")
	_, section, found := strings.Cut(readme, "\n## The relay as a library\n")
	section, _, ended := strings.Cut(section, "\n## ")
	if !found || !ended {
		t.Fatal("the README's section is gone")
	}
	examples := read(t, "embed_test.go") + read(t, "assembly_test.go")
	blocks := strings.Split(section, "```")
	if len(blocks) != 5 {
		t.Fatalf("%d parts between fences, want text, snippet, text, snippet, text", len(blocks))
	}
	for _, i := range []int{1, 3} {
		snippet := strings.TrimPrefix(blocks[i], "go\n")
		var code strings.Builder
		for line := range strings.Lines(snippet) {
			if line != "\n" {
				code.WriteByte('\t')
			}
			code.WriteString(line)
		}
		if !strings.Contains(examples, code.String()) {
			t.Errorf("no example has these lines of the README:\n%s", snippet)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
