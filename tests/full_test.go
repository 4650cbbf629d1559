package tests

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// On a full disk puts are refused, takes still work and nothing is lost; when
// there is room again, puts are welcome.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	require.NoError(t, os.Mkdir(d.data, 0o755))
	must(t, "", "mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", d.data)
	t.Cleanup(func() {
		if d.running() {
			d.stop()
		}
		must(t, "", "umount", d.data)
	})
	d.start()
	ctx := context.Background()
	m := d.dial()
	file, key := gearsfs.At("/file"), gearsfs.Key("q")
	puts := 0
	noise := rand.NewChaCha8([32]byte{3}) // does not compress
	put := func() error {
		data := make([]byte, 256<<10, 256<<10+8)
		if _, err := noise.Read(data); err != nil {
			return err
		}
		record := gearsfs.NewRecord{Data: binary.BigEndian.AppendUint64(data, uint64(puts))}
		_, err := m.Put(ctx, dgm.Put{File: file, Key: key, Records: []gearsfs.NewRecord{record}})
		if err == nil {
			puts++
		}
		return err
	}
	// A refusal has the node let go of what it can, so the disk is full when
	// nothing comes of that any more.
	fill := func() {
		var err error
		for err == nil && puts < 4000 {
			err = put()
		}
		require.ErrorIs(t, err, gearsfs.ErrNoSpace)
	}
	fill()
	small := d.gearsfs("put", ":/small", "q", "x")
	for small.status == 0 {
		fill()
		small = d.gearsfs("put", ":/small", "q", "x")
	}
	small.requireError(t, 1, "no space")
	t.Logf("full after %d puts of 256 KiB", puts)

	d.kill()
	d.start() // a full disk keeps nobody from starting

	taken := 0
	take := func(max int) {
		records, err := m.Take(ctx, dgm.Take{File: file, Keys: []gearsfs.Key{key}, Max: max, NoWait: true})
		require.NoError(t, err)
		for _, r := range records {
			require.EqualValues(t, taken, binary.BigEndian.Uint64(r.Data[256<<10:]))
			taken++
		}
	}
	for taken < puts {
		take(10)
	}
	_, err := m.Take(ctx, dgm.Take{File: file, Keys: []gearsfs.Key{key}, NoWait: true})
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	// What was taken gives its space back, though nothing else happens.
	for again := range puts / 2 {
		require.Eventually(t, func() bool {
			err := put()
			if !errors.Is(err, gearsfs.ErrNoSpace) {
				require.NoError(t, err)
			}
			return err == nil
		}, 20*time.Second, 10*time.Millisecond, "there is room for %d of %d again", again, puts)
	}
}
