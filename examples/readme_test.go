package examples_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// readmes returns the documents of the repository.
func readmes(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../*/README.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("found %d documents (%v)", len(found), err)
	}
	return append([]string{"../README.md"}, found...)
}

// The documents' snippets of Go are parts of the examples, so they compile and work.
func TestReadmeGo(t *testing.T) {
	examples := plain(read(t, "embed_test.go") + read(t, "configuration_test.go") + read(t, "insert_test.go"))
	snippets := make(map[string]int)
	for _, readme := range readmes(t) {
		for _, snippet := range blocks(read(t, readme), "go") {
			snippets[readme]++
			if !strings.Contains(examples, plain(snippet)) {
				t.Errorf("no example has these lines of %s:\n%s", readme, snippet)
			}
		}
	}
	if snippets["../README.md"] != 2 || snippets["../relay/README.md"] != 2 {
		t.Errorf("found %v snippets, want 2 in README.md and 2 in relay/README.md", snippets)
	}
}

// The documents' SQL for producers runs as it stands, and stores what it says.
func TestReadmeSQL(t *testing.T) {
	dsn := newDatabase(t.Context(), store.Table{})
	for _, readme := range readmes(t) {
		for _, sql := range blocks(read(t, readme), "sql") {
			execute(t.Context(), dsn, sql)
		}
	}
	// The table's line for psql.
	_, line, found := strings.Cut(read(t, "../store/README.md"), "| psql | `")
	line, _, ended := strings.Cut(line, "`")
	if !found || !ended {
		t.Fatal("the line for psql is gone")
	}
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
	if want := []string{`{"id":17}`, `{"path":"C:\\new"}`, `{"path":"C:\\new"}`}; err != nil || !slices.Equal(stored, want) {
		t.Errorf("stored %q (%v), want %q", stored, err, want)
	}
}

var (
	fence       = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	indentation = regexp.MustCompile(`(?m)^\t+`)
)

// blocks returns the fenced blocks of a language.
func blocks(document, language string) (found []string) {
	for _, block := range fence.FindAllStringSubmatch(document, -1) {
		if block[1] == language {
			found = append(found, block[2])
		}
	}
	return found
}

// plain is code without its indentation.
func plain(code string) string { return indentation.ReplaceAllString(code, "") }

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
