package mount

import (
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/assert"
)

// Names have tabs and line ends, and keys bytes that are no UTF-8; a wait is one
// row all the same, in the columns of the heading.
func TestWaitsOfAnyNames(t *testing.T) {
	now := time.Unix(100, 0)
	text := waitsText([]gearsfs.Wait{{
		Op: "take", Path: "/a\tb\nc", Keys: []gearsfs.Key{"k\xff", "l"}, Since: now.Add(-time.Second), Client: "x",
	}}, now)
	assert.Equal(t, ""+
		"OP    FILE    KEYS  WAITING  PASSED  CLIENT  NEAR\n"+
		"take  /a?b?c  k\ufffd,l  1s       0       x       \n", text)
}
