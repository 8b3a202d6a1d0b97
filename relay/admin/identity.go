package admin

import (
	"fmt"
	"os"
)

// Identity tells relays apart if they can have the same address: with host networking, containers share their ports.
type Identity struct {
	// Table is the outbox table that is relayed.
	Table string `json:"table,omitempty"`
	// Container is Linux's name of the process ID namespace: the same for all processes of a container, and another one for
	// each container. It is empty if it is not known.
	Container string `json:"container,omitempty"`
}

// Self returns the identity of a relay that runs in this process's container. Table is its outbox table, such as
// public.outbox.
func Self(table string) Identity {
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		namespace = "" // Not Linux, or without /proc.
	}
	return Identity{Table: table, Container: namespace}
}

// Check returns an error if other is certainly not i; it says what differs. A field that is empty in either is not compared.
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

// cut shortens a text that came over the network.
func cut(text string) string {
	const limit = 150 // A name of Postgres has 63 bytes.
	if len(text) <= limit {
		return text
	}
	return text[:limit] + "…"
}
