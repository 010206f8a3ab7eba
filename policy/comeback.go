package policy

import (
	"fmt"
	"time"
)

// Comeback is what became of the conversations that evictions took from one source. One that is there again, with
// answers, was no flood's leftover: somebody goes on speaking on both sides.
type Comeback struct {
	Source  Source
	Taken   int // conversations that evictions took lately
	Watched int // of them, those that are looked for
	Back    int // of those, the ones that came back and speak
}

// estimate returns how many of the conversations that were taken came back.
func (c Comeback) estimate() float64 {
	return float64(c.Taken) * float64(c.Back) / float64(max(c.Watched, 1))
}

// Bounds of what comes back. Bots can hold connections and speak as well, so what comes back is kept and nothing
// else: a source's growth beyond it stays limited, it is no usual holding, and all of it together is a small part of
// the table. Where evict stands back, who usually is here may have as much again, so that somebody who was here with
// one entry can't fill the table for that.
const (
	backPart     = 0.25             // part of the watched conversations of a source that must have come back
	backMost     = 0.1              // part of the capacity that is kept for what came back
	backFor      = 10 * time.Minute // how long it is kept
	backSources  = 3                // sources that usually are here, for evict to stand back from all of them
	backGeneral  = 0.5              // and the part of their watched conversations
	standBackFor = 2 * time.Minute  // how long it stands back, at first
)

// comebacks is what evict knows of its own harm.
type comebacks struct {
	sources map[Source]kept
	all     float64 // entries that are kept in all
	back    stretch // while it stands back: who usually is here may have twice as much
}

// kept is what a source keeps because it came back.
type kept struct {
	Comeback
	until time.Time
}

// heed takes in what a census found of conversations that were evicted. It returns the sources that keep what came
// back from now on.
func (b *comebacks) heed(s situation) (newly []Source, events []Event) {
	for p, k := range b.sources {
		if !s.Time.Before(k.until) {
			delete(b.sources, p)
		}
	}
	sources, watched, back := 0, 0, 0
	for _, c := range s.Census.Comebacks {
		if s.ordinary.Usual(c.Source).Assured >= 1 {
			sources, watched, back = sources+1, watched+c.Watched, back+c.Back
		}
		if c.Back == 0 || float64(c.Back) < backPart*float64(c.Watched) {
			continue
		}
		if b.sources == nil {
			b.sources = make(map[Source]kept)
		}
		if _, known := b.sources[c.Source]; !known {
			newly = append(newly, c.Source)
			events = append(events, Event{Kind: EvictEvent, Step: Evict, Prefix: c.Source.Prefix, Zone: c.Source.Zone,
				Entries: int(c.estimate()), Reason: fmt.Sprintf("%s: it keeps what came back for %s", c.text(), backFor)})
		}
		b.sources[c.Source] = kept{c, s.Time.Add(backFor)}
	}
	b.all = 0
	for _, k := range b.sources {
		b.all += k.estimate()
	}
	events = summed(events)
	if sources >= backSources && float64(back) >= backGeneral*float64(watched) && !b.back.on(s.Time) {
		span := b.back.begin(s.Time, standBackFor)
		events = append(events, Event{Kind: DegradedEvent, Step: Evict, Reason: fmt.Sprintf("%d of %d conversations of %d "+
			"sources that usually are here came back after they were evicted: for %s who usually is here may have twice as much",
			back, watched, sources, span)})
	}
	return newly, events
}

// text says what came back.
func (c Comeback) text() string {
	return fmt.Sprintf("%d of %d conversations that were evicted came back and speak", c.Back, c.Watched)
}

// keeps returns how many entries a source keeps beside its usual holding because evicted ones came back.
func (b *comebacks) keeps(a usage, s situation) float64 {
	keep, most := b.sources[a.Source()].estimate(), backMost*float64(s.Capacity)
	if b.all > most {
		keep *= most / b.all
	}
	if b.back.on(s.Time) {
		keep = max(keep, a.usual.Assured)
	}
	return keep
}

// status says what is spared now.
func (b *comebacks) status(now time.Time) string {
	text := ""
	if n := len(b.sources); n > 0 {
		text = fmt.Sprintf("; %d sources keep what came back after it was evicted", n)
	}
	if b.back.on(now) {
		text += fmt.Sprintf("; for %s more who usually is here may have twice as much, as evicted conversations came back",
			b.back.until.Sub(now).Round(time.Second))
	}
	return text
}
