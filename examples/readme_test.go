package examples_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
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

// The README's SQL for producers runs as it stands, and stores what it says.
func TestReadmeSQL(t *testing.T) {
	_, section, found := strings.Cut(read(t, "../README.md"), "\n## Producing\n")
	section, _, ended := strings.Cut(section, "\n## ")
	if !found || !ended {
		t.Fatal("the README's section is gone")
	}
	dsn := newDatabase(t.Context(), store.Table{})
	blocks := 0
	for i, block := range strings.Split(section, "```") {
		if sql, ok := strings.CutPrefix(block, "sql\n"); ok && i%2 == 1 {
			blocks++
			execute(t.Context(), dsn, sql)
		}
	}
	// The table's line for psql.
	_, line, _ := strings.Cut(section, "| psql | `")
	line, _, _ = strings.Cut(line, "`")
	execute(t.Context(), dsn, line)

	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	rows, err := conn.Query(t.Context(), `select convert_from(data, 'UTF8') from outbox order by seq`)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if want := []string{`{"id":17}`, `{"path":"C:\\new"}`, `{"path":"C:\\new"}`}; err != nil || blocks != 2 || !slices.Equal(stored, want) {
		t.Errorf("%d blocks of SQL stored %q (%v), want 2 and %q", blocks, stored, err, want)
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
