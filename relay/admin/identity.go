package admin

import (
	"fmt"
	"os"
)

// Identity tells relays apart that may be found at one address: with host networking, containers share their ports.
type Identity struct {
	// Table is the outbox table that is relayed.
	Table string `json:"table,omitempty"`
	// Container is Linux's name of the process ID namespace. Processes of one container have it in common; those of
	// another container have another one. It is empty where it is not known.
	Container string `json:"container,omitempty"`
}

// Self is the identity of a relay of table in this process's container.
func Self(table string) Identity {
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		namespace = "" // Not Linux, or without /proc.
	}
	return Identity{Table: table, Container: namespace}
}

// Check returns an error that says what is different if other is certainly not i. What either does not know is not
// compared.
func (i Identity) Check(other Identity) error {
	switch {
	case differ(i.Table, other.Table):
		return fmt.Errorf("it relays the table %q, not %q", cut(other.Table), i.Table)
	case differ(i.Container, other.Container):
		return fmt.Errorf("it runs in another container (%q, not %q)", cut(other.Container), i.Container)
	default:
		return nil
	}
}

func differ(a, b string) bool { return a != "" && b != "" && a != b }

// cut shortens what comes from somebody else.
func cut(text string) string {
	const limit = 150 // A name of Postgres has 63 bytes.
	if len(text) <= limit {
		return text
	}
	return text[:limit] + "…"
}
