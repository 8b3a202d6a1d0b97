package config_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

// markdown describes every setting as the table in README.md.
func markdown() string {
	escape := strings.NewReplacer("|", `\|`) // A pipe would end the cell.
	var b strings.Builder
	b.WriteString("| key | environment | default | accepts | meaning |\n")
	b.WriteString("|---|---|---|---|---|\n")
	for _, f := range config.Fields() {
		value := "`" + f.Default + "`"
		switch {
		case f.Required:
			value = "required"
		case f.Default == "":
			value = "none"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", f.Key, f.Env, value, escape.Replace(f.Want), escape.Replace(f.Doc))
	}
	return b.String()
}

func TestReadmeHasTheTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), markdown()) {
		t.Errorf("README.md does not have this table:\n%s", markdown())
	}
}
