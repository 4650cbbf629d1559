package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	benchChunkBytes = 1 << 20
	benchSmallBytes = 4 << 10
	benchSmallFiles = 2000
)

// benchFiles measures files in a new directory in dir, and removes that.
func benchFiles(ctx context.Context, dir string, size uint64) (rows []measured, err error) {
	at, err := os.MkdirTemp(dir, benchName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(at)) }()
	large := filepath.Join(at, "large")
	add := func(row measured, err error) error {
		if err == nil {
			rows = append(rows, row)
		}
		return err
	}
	if err := add(writeLarge(ctx, large, size)); err != nil {
		return nil, err
	}
	if err := add(readLarge(ctx, large)); err != nil {
		return nil, err
	}
	if err := os.Remove(large); err != nil {
		return nil, err
	}
	small, err := benchSmall(ctx, at)
	return append(rows, small...), err
}

// noise fills a buffer with what can't be compressed.
func noise(n int) []byte {
	data, x := make([]byte, n), uint64(1)
	for i := range data {
		x = x*6364136223846793005 + 1442695040888963407
		data[i] = byte(x >> 56)
	}
	return data
}

func writeLarge(ctx context.Context, path string, size uint64) (_ measured, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return measured{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data := noise(benchChunkBytes)
	begin, written := time.Now(), 0
	for uint64(written) < size && time.Since(begin) < 2*benchSpan {
		if ctx.Err() != nil {
			return measured{}, context.Cause(ctx)
		}
		n, err := f.Write(data[:min(uint64(len(data)), size-uint64(written))])
		if err != nil {
			return measured{}, err
		}
		written += n
	}
	if err := f.Sync(); err != nil {
		return measured{}, err
	}
	return throughput(fmt.Sprintf("large file: write %d MiB, fsync", written>>20), written, time.Since(begin)), nil
}

func throughput(name string, n int, took time.Duration) measured {
	return measured{Name: name, Value: float64(n) / 1e6 / max(took, 1).Seconds(), Unit: "MB/s"}
}

// readLarge asks the system to forget the file first, which it may or may not.
func readLarge(ctx context.Context, path string) (_ measured, err error) {
	f, err := os.Open(path)
	if err != nil {
		return measured{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) //nolint:errcheck // it is an advice
	data := make([]byte, benchChunkBytes)
	begin, got := time.Now(), 0
	for time.Since(begin) < 2*benchSpan {
		if ctx.Err() != nil {
			return measured{}, context.Cause(ctx)
		}
		n, err := f.Read(data)
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return measured{}, err
		}
	}
	return throughput("large file: read", got, time.Since(begin)), nil
}

// benchSmall makes small files in at and does to them what one does.
func benchSmall(ctx context.Context, at string) ([]measured, error) {
	data := noise(benchSmallBytes)
	name := func(i int) string { return filepath.Join(at, fmt.Sprintf("f%05d", i)) }
	renamed := func(i int) string { return filepath.Join(at, fmt.Sprintf("r%05d", i)) }
	made := 0
	moved := 0
	now := func(i int) string {
		if i < moved {
			return renamed(i)
		}
		return name(i)
	}
	var rows []measured
	for _, work := range []struct {
		name, unit string
		do         func(i int) error
	}{
		{"small files: make, 4 KiB each", "files/s", func(i int) error {
			made = i + 1
			return os.WriteFile(name(i), data, 0o600)
		}},
		{"small files: read", "files/s", func(i int) error {
			_, err := os.ReadFile(name(i))
			return err
		}},
		{"metadata: stat", "/s", func(i int) error {
			_, err := os.Stat(name(i))
			return err
		}},
		{"metadata: rename", "/s", func(i int) error {
			moved = i + 1
			return os.Rename(name(i), renamed(i))
		}},
		{"metadata: unlink", "/s", func(i int) error { return os.Remove(now(i)) }},
	} {
		most := benchSmallFiles
		if made > 0 {
			most = made
		}
		row, err := repeat(ctx, work.name, work.unit, most, work.do)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
		if work.name == "small files: read" {
			row, err := listSmall(ctx, at)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// listSmall lists the directory with all attributes, as ls -l does.
func listSmall(ctx context.Context, at string) (measured, error) {
	listed := 0
	begin := time.Now()
	err := filepath.WalkDir(at, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		listed++
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err = d.Info()
		return err
	})
	return measured{Name: "small files: list, as ls -l", Value: float64(listed) / max(time.Since(begin), 1).Seconds(), Unit: "files/s"}, err
}
