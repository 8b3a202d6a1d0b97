package versions_test

import (
	"testing"

	"github.com/go-outbox/go-outbox/integration/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
