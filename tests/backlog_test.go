package tests

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// memoryMax is what the daemon may have resident, whatever it holds.
const memoryMax = 512 << 20

func (d *daemon) requireBounded() {
	d.t.Helper()
	peak := d.peakRSS()
	d.t.Logf("peak memory %d MiB", peak>>20)
	require.Less(d.t, peak, uint64(memoryMax), "peak memory in bytes")
}

// A long backlog costs neither memory nor time at the start.
func TestBacklog(t *testing.T) {
	t.Parallel()
	records := size(1_000_000, 10_000_000)
	const recordBytes, batch = 100, 4096
	ctx := context.Background()
	d := startDaemon(t)
	file, key := gearsfs.At("/backlog"), gearsfs.Key("q")
	payload := func(i int) []byte {
		return binary.BigEndian.AppendUint64(make([]byte, recordBytes-8, recordBytes), uint64(i))
	}

	began := time.Now()
	m := d.dial()
	for put := 0; put < records; {
		some := make([]gearsfs.NewRecord, min(batch, records-put))
		for i := range some {
			some[i].Data = payload(put + i)
		}
		_, err := m.Put(ctx, dgm.Put{File: file, Key: key, Records: some})
		require.NoError(t, err)
		put += len(some)
	}
	t.Logf("put %d records in %v", records, time.Since(began).Round(time.Millisecond))
	d.requireBounded()

	for _, how := range []struct {
		name string
		end  func()
	}{{"SIGTERM", d.stop}, {"kill -9", d.kill}} {
		how.end()
		began = time.Now()
		d.start()
		took := time.Since(began)
		t.Logf("ready %v after %s", took.Round(time.Millisecond), how.name)
		require.Less(t, took, 30*time.Second)
		info, err := d.dial().Stream(ctx, file, key)
		require.NoError(t, err)
		require.EqualValues(t, records, info.Records)
	}

	began = time.Now()
	m = d.dial()
	_, err := m.Put(ctx, dgm.Put{File: file, Key: key, Seal: true})
	require.NoError(t, err)
	taken := 0
	for {
		some, err := m.Take(ctx, dgm.Take{File: file, Keys: []gearsfs.Key{key}, Max: batch})
		if errors.Is(err, gearsfs.ErrEnd) {
			break
		}
		require.NoError(t, err)
		for _, r := range some {
			require.Equal(t, payload(taken), r.Data)
			taken++
		}
	}
	require.Equal(t, records, taken)
	t.Logf("took them in %v", time.Since(began).Round(time.Millisecond))
	d.requireBounded()
}

// A large file costs no memory either.
func TestLargeFile(t *testing.T) {
	bytes := int64(size(512<<20, 4<<30))
	d := startMounted(t)
	path := filepath.Join(d.mount, "large")
	source := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), bytes) }

	began := time.Now()
	f, err := os.Create(path)
	require.NoError(t, err)
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(onlyWriter{io.MultiWriter(f, sum)}, source(), buf)
	require.NoError(t, err)
	require.Equal(t, bytes, n)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	t.Logf("wrote %d MiB in %v", bytes>>20, time.Since(began).Round(time.Millisecond))
	d.requireBounded()

	d.kill()
	detach(t, d.mount)
	d.start()

	began = time.Now()
	f, err = os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	again := sha256.New()
	n, err = io.CopyBuffer(onlyWriter{again}, onlyReader{f}, buf)
	require.NoError(t, err)
	require.Equal(t, bytes, n)
	require.Equal(t, fmt.Sprintf("%x", sum.Sum(nil)), fmt.Sprintf("%x", again.Sum(nil)))
	t.Logf("read it in %v", time.Since(began).Round(time.Millisecond))
	d.requireBounded()
}

// onlyWriter and onlyReader hide what would make io.Copy choose its own way.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }
