package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// words compares the distributed WordCount with wc on the same file.
func words(ctx context.Context, b *bench) error {
	const bytes = 256 << 20
	path := filepath.Join(b.dir, "text")
	lines, err := text(path, bytes)
	if err != nil {
		return err
	}
	var ours, theirs []float64
	for range b.rounds {
		for _, side := range []struct {
			figures *[]float64
			cmd     *exec.Cmd
		}{
			{&ours, exec.CommandContext(ctx, filepath.Join(b.bin, "gearsfs"), "wordcount", path)},
			{&theirs, exec.CommandContext(ctx, "wc", "-lwc", path)},
		} {
			side.cmd.Env = append(os.Environ(), "LC_ALL=C")
			begin := time.Now()
			if out, err := side.cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			*side.figures = append(*side.figures, bytes/1e6/time.Since(begin).Seconds())
		}
	}
	fmt.Println("WordCount over two nodes, and wc -lwc")
	row("256 MiB of text", "MB/s", ours, theirs)
	fmt.Printf("%.3g lines/s\n", float64(lines)*median(ours)*1e6/bytes)
	return nil
}

// text writes lines of words, and returns how many.
func text(path string, bytes int) (lines int, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	rnd := rand.New(rand.NewPCG(5, 6))
	for n := 0; n < bytes; {
		length := 0
		for length < 70 {
			word := fmt.Sprintf("word%d ", rnd.IntN(100000))
			length += len(word)
			if _, err := w.WriteString(word); err != nil {
				return 0, err
			}
		}
		if err := w.WriteByte('\n'); err != nil {
			return 0, err
		}
		n += length + 1
		lines++
	}
	return lines, w.Flush()
}

// start prints how long a node takes to serve, and how large the binaries are.
func start(ctx context.Context, b *bench) error {
	var took []float64
	dir := filepath.Join(b.dir, "start")
	for range b.rounds + 1 { // the first makes the data
		begin := time.Now()
		p, err := b.startProcess(ctx, "ready", "gearsfsd", "--data", dir, "--listen", "unix:"+filepath.Join(b.dir, "start.sock"))
		if err != nil {
			return err
		}
		took = append(took, time.Since(begin).Seconds()*1e3)
		if err := p.stop(); err != nil {
			return err
		}
	}
	fmt.Printf("start of gearsfsd: %.1f ms with new data, %.1f ms then\n", took[0], median(took[1:]))
	for _, name := range []string{"gearsfs", "gearsfsd"} {
		info, err := os.Stat(filepath.Join(b.bin, name))
		if err != nil {
			return err
		}
		fmt.Printf("%s: %.1f MB, static and stripped\n", name, float64(info.Size())/1e6)
	}
	return nil
}
