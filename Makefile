# A thin list of what scripts/ can do. `make help` prints the second line of each script, which is its description.
.DEFAULT_GOAL := help
VERBS := $(filter-out lib,$(notdir $(wildcard scripts/*)))
.PHONY: help $(VERBS)

help:
	@echo "make VERB runs scripts/VERB (which takes arguments when called by itself):"
	@for verb in $(VERBS); do \
	  printf '  %-10s %s\n' "$$verb" "$$(sed -n '2s/^# //p' scripts/$$verb)"; \
	done

$(VERBS):
	@./scripts/$@
