package wordcount

import (
	"cmp"
	"container/heap"
	"slices"
)

// Frequency says how often a word was met.
type Frequency struct {
	Word  string // the bytes as they were
	Count uint64
}

// wordMap counts words. Its size is that of the distinct words.
type wordMap struct {
	index map[string]int // into all; a slice, so that counting does not allocate
	all   []Frequency
}

func (m *wordMap) add(word []byte, n uint64) {
	if i, ok := m.index[string(word)]; ok {
		m.all[i].Count += n
		return
	}
	if m.index == nil {
		m.index = make(map[string]int)
	}
	s := string(word)
	m.index[s] = len(m.all)
	m.all = append(m.all, Frequency{s, n})
}

func (m *wordMap) clear() {
	clear(m.index)
	m.all = m.all[:0]
}

// byRank orders the more frequent words first, ties by their bytes.
func byRank(a, b Frequency) int {
	if c := cmp.Compare(b.Count, a.Count); c != 0 {
		return c
	}
	return cmp.Compare(a.Word, b.Word)
}

// top returns the n first words by rank.
func (m *wordMap) top(n int) []Frequency {
	var worst worstFirst
	for _, f := range m.all {
		switch {
		case len(worst) < n:
			heap.Push(&worst, f)
		case n > 0 && byRank(f, worst[0]) < 0:
			worst[0] = f
			heap.Fix(&worst, 0)
		}
	}
	slices.SortFunc(worst, byRank)
	return worst
}

// worstFirst is a heap with the last word by rank on top.
type worstFirst []Frequency

func (h worstFirst) Len() int           { return len(h) }
func (h worstFirst) Less(i, j int) bool { return byRank(h[i], h[j]) > 0 }
func (h worstFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *worstFirst) Push(x any)        { *h = append(*h, x.(Frequency)) }
func (h *worstFirst) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
