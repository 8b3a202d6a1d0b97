package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What relay/README.md says that the relay logs, the relay can log: each message is a part of a text in our code.
func TestTroubleShootingIsAboutTheseMessages(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "\n## Trouble-shooting\n")
	table, _, found := strings.Cut(table, "\nWhat Postgres, NATS and Linux say:\n")
	if !found {
		t.Fatal("the section is gone")
	}
	texts, messages := literals(t, "../../.."), 0
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \|`).FindAllStringSubmatch(table, -1) {
		for _, message := range regexp.MustCompile("`(.+?)`").FindAllStringSubmatch(row[1], -1) {
			messages++
			for part := range strings.SplitSeq(message[1], "…") {
				if !strings.Contains(texts, strings.TrimSpace(part)) {
					t.Errorf("nothing says %q, of %q", part, message[1])
				}
			}
		}
	}
	if messages < 40 {
		t.Errorf("found %d messages, want 40 or more", messages)
	}
}

// literals returns all string literals of the code, but for the tests', with an ellipsis for each verb.
func literals(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	verb := regexp.MustCompile(`%[-+#.0-9*\[\]]*[a-z]`)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if literal, ok := node.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Errorf("%s: %v", path, err)
				}
				all.WriteString(verb.ReplaceAllString(text, "…") + "\n")
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
