package persist

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
)

func benchLog(b *testing.B) *Data {
	d, err := Open(filepath.Join(b.TempDir(), "data"), Options{Create: true})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, d.Close()) })
	return d
}

// BenchmarkAppendSync is one durable entry at a time, beside the same bytes
// written raw into a preallocated file.
func BenchmarkAppendSync(b *testing.B) {
	for _, size := range []int{128, 4096} {
		b.Run(fmt.Sprintf("log/%dB", size), func(b *testing.B) {
			log := benchLog(b).Log
			data := make([]byte, size)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				require.NoError(b, log.Append([]LogEntry{{Index: log.Last() + 1, Term: 1, Data: data}}, nil))
				require.NoError(b, log.Sync())
				keepLogShort(b, log)
			}
		})
		b.Run(fmt.Sprintf("raw/%dB", size), func(b *testing.B) {
			f, err := vfs.Default.OpenReadWrite(filepath.Join(b.TempDir(), "raw"), logWrites)
			require.NoError(b, err)
			const fileBytes = 16 << 20
			require.NoError(b, fillZeros(f, fileBytes))
			require.NoError(b, f.Sync())
			data := make([]byte, recordBytes(size))
			off := int64(0)
			b.SetBytes(int64(size))
			for b.Loop() {
				_, err := f.WriteAt(data, off)
				require.NoError(b, err)
				require.NoError(b, f.SyncData())
				off = (off + int64(len(data))) % (fileBytes - int64(len(data)))
			}
			require.NoError(b, f.Close())
		})
	}
}

// BenchmarkAppend is appending without waiting for the disk.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{128, 128 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			log := benchLog(b).Log
			data := make([]byte, size)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				require.NoError(b, log.Append([]LogEntry{{Index: log.Last() + 1, Term: 1, Data: data}}, nil))
				keepLogShort(b, log)
			}
		})
	}
}

// keepLogShort cuts the log as a replica does.
func keepLogShort(b *testing.B, log *Log) {
	if log.Bytes() > 64<<20 {
		require.NoError(b, log.TruncateFront(log.Last()))
	}
}

// BenchmarkCommit is an entry's changes to the state: rows read and written in
// one batch.
func BenchmarkCommit(b *testing.B) {
	for _, rows := range []int{1, 64} {
		b.Run(fmt.Sprintf("%drows", rows), func(b *testing.B) {
			state := benchLog(b).State
			value := make([]byte, 150)
			var key, buf []byte
			n := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				for range rows {
					n++
					key = AppendRecordKey(key[:0], 7, "data", placeAt(n))
					state.Set(key, value)
					buf, _, _ = state.Get(VolumeKey(), buf[:0])
				}
				state.Set(VolumeKey(), key)
				require.NoError(b, state.Commit())
			}
			b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
