package dgm_test

import (
	"runtime"
	"testing"
	"weak"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// Nothing holds a volume that is closed: not the timers for sessions that have
// gone and for what is forgotten later, either.
func TestClosedVolumeIsFree(t *testing.T) {
	var closed weak.Pointer[dgm.Volume]
	t.Run("use", func(t *testing.T) { // has a stack of its own, which is gone then
		data, err := persist.Open(t.TempDir(), persist.Options{Create: true, Name: "test"})
		require.NoError(t, err)
		vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{Data: data, Insecure: true})
		require.NoError(t, err)
		for range 2 {
			m, err := vol.Local(client)
			require.NoError(t, err)
			put(t, m, "k", "record")
			require.NoError(t, m.Close())
		}
		require.NoError(t, vol.Close())
		closed = weak.Make(vol)
	})
	for range 3 {
		runtime.GC() // the first one may leave what was in pools
	}
	require.True(t, closed.Value() == nil, "it is still there")
}
