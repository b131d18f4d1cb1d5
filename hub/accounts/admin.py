from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.http import HttpRequest

from hub.accounts.forms import AdminSignInForm
from hub.accounts.models import Token, User

admin.site.register(User, UserAdmin)
admin.site.site_header = "Quanthub administration"
admin.site.site_title = "Quanthub"
admin.site.index_title = "Records"
admin.site.login_form = AdminSignInForm


@admin.register(Token)
class TokenAdmin(admin.ModelAdmin):
    """Tokens can be looked at and revoked. They are made on their owner's page, where the secret is shown."""

    list_display = ("name", "prefix", "user", "scope", "created", "last_used")
    list_filter = ("scope",)
    search_fields = ("name", "prefix", "user__username")
    list_select_related = ("user",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        return False
