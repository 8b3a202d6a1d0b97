package examples_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// code is any text in backquotes.
	code = regexp.MustCompile("`([^`\n]+)`")
	// introduces is what stands between a file and a name in it.
	introduces = regexp.MustCompile("^:\\s+`")
	// testName is the name of a test, and testFunction its declaration.
	testName     = regexp.MustCompile(`^(?:Test|Fuzz|Benchmark)[A-Z]\w*$`)
	testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z]\w*)\(`)
	// pathLike is what can only be meant as a file or a folder of the repository, and memberLike as a method or a field.
	pathLike   = regexp.MustCompile(`^(?:[\w.-]+/)*[\w.-]+\.(?:go|md|sql|toml|ya?ml)$|^(?:config|election|examples|integration|relay|store|stream|\.ci|\.github)/[\w./-]*$`)
	memberLike = regexp.MustCompile(`^[A-Za-z]\w*\.[A-Za-z]\w*$`)
)

// CONTRIBUTING.md names files and functions that exist. After a rename, this test says what to change there.
//
// It writes `file`: `name`, or `file`: `name`, `name`. A `Type.member` elsewhere is one of those files'.
func TestContributing(t *testing.T) {
	text := read(t, "../CONTRIBUTING.md")
	files := make(map[string]string) // Their contents.
	declared := make(map[string]map[string]bool)
	everywhere := make(map[string]bool)
	look := func(file string) {
		if _, known := files[file]; known {
			return
		}
		content, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(file)))
		if err != nil {
			t.Errorf("CONTRIBUTING.md names the file %s: %v", file, err)
			content = []byte("package missing")
		}
		files[file], declared[file] = string(content), declarations(t, file, content)
		maps.Copy(everywhere, declared[file])
	}

	references, file, end := 0, "", 0
	var members []string
	for _, at := range code.FindAllStringSubmatchIndex(text, -1) {
		name, between := text[at[2]:at[3]], strings.TrimSpace(text[end:at[0]])
		end = at[1]
		switch {
		case introduces.MatchString(text[end:]):
			file = name
			look(file)
			continue
		case file != "" && (between == ":" || between == ","):
			references++
			known := declared[file][name]
			if path.Ext(file) != ".go" { // It declares nothing, but has the text.
				known = strings.Contains(files[file], name)
			}
			if !known {
				t.Errorf("CONTRIBUTING.md: %s has no %s", file, name)
			}
			continue
		}
		file = ""
		switch {
		case pathLike.MatchString(name):
			if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(name))); err != nil {
				t.Errorf("CONTRIBUTING.md names %s: %v", name, err)
			}
		case memberLike.MatchString(name):
			members = append(members, name)
		}
	}
	for _, member := range members {
		if !everywhere[member] {
			t.Errorf("CONTRIBUTING.md: no file that it refers to has %s", member)
		}
	}
	if references < 100 {
		t.Errorf("CONTRIBUTING.md has %d references of the form `file`: `name`, want more than 100", references)
	}
}

// The tests that documents name exist.
func TestDocumentsNameTests(t *testing.T) {
	tests := testFunctions(t)
	for _, document := range append(readmes(t), "../CONTRIBUTING.md") {
		for _, c := range code.FindAllStringSubmatch(read(t, document), -1) {
			if testName.MatchString(c[1]) && !tests[c[1]] {
				t.Errorf("%s names the test %s, which does not exist", document, c[1])
			}
		}
	}
}

// declarations returns what a Go file declares: functions, types, constants and variables by name, and methods and fields
// as Type.name.
func declarations(t *testing.T, file string, content []byte) map[string]bool {
	t.Helper()
	declared := make(map[string]bool)
	if path.Ext(file) != ".go" {
		return declared
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), file, content, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, declaration := range parsed.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				name = receiver(d.Recv.List[0].Type) + "." + name
			}
			declared[name] = true
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					for _, name := range s.Names {
						declared[name.Name] = true
					}
				case *ast.TypeSpec:
					declared[s.Name.Name] = true
					for _, member := range members(s.Type) {
						declared[s.Name.Name+"."+member] = true
					}
				}
			}
		}
	}
	return declared
}

// receiver returns the name of a method's type.
func receiver(of ast.Expr) string {
	switch e := of.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// members returns the names of a struct's fields, or of an interface's methods.
func members(of ast.Expr) (names []string) {
	var list *ast.FieldList
	switch e := of.(type) {
	case *ast.StructType:
		list = e.Fields
	case *ast.InterfaceType:
		list = e.Methods
	default:
		return nil
	}
	for _, field := range list.List {
		for _, name := range field.Names {
			names = append(names, name.Name)
		}
	}
	return names
}

// testFunctions returns the names of all tests of the module, and of the suites in its kits.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	err := filepath.WalkDir("..", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && file != ".." && (strings.HasPrefix(entry.Name(), ".") || slices.Contains([]string{"testdata", "bin", "data"}, entry.Name())):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(file, ".go"): // Suites of a kit are in files without _test.
			return nil
		}
		for _, declaration := range testFunction.FindAllStringSubmatch(read(t, file), -1) {
			found[declaration[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
