package replica

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

var _ Machine = (*file.Machine)(nil)

// TestVolume has the real state machine, whose node dies, is restarted, and is
// closed well.
func TestVolume(t *testing.T) {
	fs := vfs.NewCrashableMem()
	var conf []byte
	for life := range 4 {
		data, err := persist.Open("data", persist.Options{FS: fs, Create: true, Name: "a"})
		require.NoError(t, err)
		machine, err := file.New(data.State, nil)
		require.NoError(t, err)
		before, _ := machine.Applied()
		require.Equal(t, life >= 3, before > 0, "the state is flushed on Close only")
		g, err := Open(Config{
			ID: 7, Log: data.Log, Machine: machine, Flush: data.State.Flush, Clock: time.Now,
			Fatal: func(err error) { t.Error(err) },
		})
		require.NoError(t, err)
		if life == 0 {
			conf = machine.ConfState()
			require.NotEmpty(t, conf)
		}
		require.Equal(t, conf, machine.ConfState())

		answers := make(chan *wire.Answer, 1)
		g.Propose(&Proposal{
			Command: &wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}},
			Durable: true, Done: func(a *wire.Answer, _ error) { answers <- a },
		})
		want := uint32(0)
		if life > 0 {
			want = uint32(gearsfs.ErrExists.Code)
		}
		require.Equal(t, want, (<-answers).GetCode())
		require.Equal(t, machine.LogTime(), g.time.Load())

		died := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		require.NoError(t, g.Close())
		require.NoError(t, data.Close())
		if life < 2 {
			fs = died
		}
	}
}
