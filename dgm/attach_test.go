package dgm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// Who says hello again while the state is asked about its session waits for that
// too: welcomed before, it would be told that what it asked for is closed, where the
// state has forgotten the session or the tenure ends first.
func TestHelloWhileTheStateIsAsked(t *testing.T) {
	id := gearsfs.SessionID{Minted: 1, Salt: 2}
	for name, adopted := range map[string]bool{"adopted": true, "unknown here": false} {
		t.Run(name, func(t *testing.T) {
			ten := new(Volume).newTenure(1)
			if adopted {
				s := ten.newSessionLocked(id, Client{}, false)
				ten.absent[id] = s
			}
			hello := func(attempt uint64) (*session, bool) {
				p := &peer{vol: ten.vol, sessions: make(map[gearsfs.SessionID]*session)}
				s, back, err := ten.attach(greeting{id: id, attempt: attempt}, p, nil)
				require.NoError(t, err)
				return s, back
			}
			s, back := hello(1)
			require.True(t, back)
			again, back := hello(2)
			require.Same(t, s, again)
			require.True(t, back, "the state was not heard yet")
			ten.confirmed(s)
			_, back = hello(3)
			require.False(t, back)
		})
	}
}
