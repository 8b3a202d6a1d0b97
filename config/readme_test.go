package config_test

import (
	"os"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

func TestReadmeHasTheTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), config.Markdown()) {
		t.Errorf("README.md does not have the table as config.Markdown returns it:\n%s", config.Markdown())
	}
}
