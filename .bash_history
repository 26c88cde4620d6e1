bind 'set show-all-if-ambiguous on'; printf '\002%s\003' READY
bind 'set page-completions off'; printf '\002%s\003' READY
bind 'set completion-query-items 0'; printf '\002%s\003' READY
bind 'set bell-style none'; printf '\002%s\003' READY
bind 'set enable-bracketed-paste off'; printf '\002%s\003' READY
bind 'set colored-stats off'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-img'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-io'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-nbd'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-shell'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblockd'; printf '\002%s\003' READY
qb_say() { printf '\n\002LINE:%s\003\n' "$READLINE_LINE" ; READLINE_LINE=; READLINE_POINT=0; }; bind -x '"\C-g": qb_say'; printf '\002%s\003' READY
bind 'set show-all-if-ambiguous on'; printf '\002%s\003' READY
bind 'set page-completions off'; printf '\002%s\003' READY
bind 'set completion-query-items 0'; printf '\002%s\003' READY
bind 'set bell-style none'; printf '\002%s\003' READY
bind 'set enable-bracketed-paste off'; printf '\002%s\003' READY
bind 'set colored-stats off'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-img'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-io'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-nbd'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblock-shell'; printf '\002%s\003' READY
source '/work/wt/docs/dist/share/bash-completion/completions/qblockd'; printf '\002%s\003' READY
qb_say() { printf '\n\002LINE:%s\003\n' "$READLINE_LINE" ; READLINE_LINE=; READLINE_POINT=0; }; bind -x '"\C-g": qb_say'; printf '\002%s\003' READY
